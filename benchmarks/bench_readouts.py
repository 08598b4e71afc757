"""What do read-outs cost, in time beside the plain forward and in memory beyond the arrays?

    python benchmarks/bench_readouts.py [LENGTH]

Memory is the growth of the process's peak; each measurement runs in a process of its own. Writes
benchmarks/results/readouts.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import save

import regard

WANTED: dict[str, dict[str, Any]] = {
    "output alone": {},
    "lse": {"lse": True},
    "entropy": {"entropy": True},
    "top_k(8)": {"top_k": 8},
    "received": {"received": True},
    "pooled (64, 64)": {"pooled": (64, 64)},
    "default": {"read_outs": "default"},
}


def measure(length: int, name: str) -> dict[str, float]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 8, length, 64) for _ in range(3))
    regard.attention(q[..., :64, :], k[..., :64, :], v[..., :64, :])

    def run() -> None:
        weights = regard.weights(q, k)
        weights.attend(v, **WANTED[name])

    return _cost(run)


def plain(length: int) -> dict[str, float]:
    """Plain PyTorch: the output, the weights and their column sums."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 8, length, 64) for _ in range(3))

    def run() -> None:
        weights = (q @ k.mT * 0.125).softmax(dim=-1)
        weights @ v, weights.sum(dim=-2)

    return _cost(run)


def _cost(run: Callable[[], None]) -> dict[str, float]:
    before, start = peak(), time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start, "MiB": peak() - before}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    if len(sys.argv) == 3:
        length, name = int(sys.argv[1]), sys.argv[2]
        print(json.dumps(plain(length) if name == "plain" else measure(length, name)))
        return
    length = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    rows = []
    for name in [*WANTED, *(["plain"] if length <= 8192 else [])]:
        command = [sys.executable, __file__, str(length), name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        cost = json.loads(done.stdout)
        print(f"{length:>6} {name:<18} {cost['seconds']:8.2f} s   {cost['MiB']:8.1f} MiB")
        rows.append({"length": length, "read_outs": name, **cost})
    print(save(f"readouts_{length}", rows))


if __name__ == "__main__":
    main()
