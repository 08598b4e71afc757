"""What do read-outs cost: beside the plain forward, beside PyTorch's matrix, and in memory?

    python benchmarks/bench_readouts.py own DTYPE      time beside our own output alone
    python benchmarks/bench_readouts.py each DTYPE     the same for each read-out by itself
    python benchmarks/bench_readouts.py peers DTYPE    output, weights and column sums in PyTorch
    python benchmarks/bench_readouts.py memory DTYPE   the growth of a fresh process's peak

DTYPE is float32 or bfloat16. Arrays are (1, 8, 8192, 64), memory also (1, 8, 32768, 64). Each
writes benchmarks/results/ISA/readouts_<what>_<dtype>.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from harness import alternate, record, save

import regard
from regard.readouts import KINDS

Call = Callable[[], Any]

LENGTH = 8192
ROWS = {
    **dict.fromkeys(("lse", "max_score", "max_weight", "entropy", "effective_keys"), True),
    "top_k": 8,
    "distance": True,
    "mass": 1,
}
WANTED: dict[str, dict[str, Any]] = {
    "output": {},
    "rows": ROWS,
    "default": {"read_outs": "default"},
    "received": {"received": True},
}


def tensors(length: int, dtype: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 8, length, 64).to(getattr(torch, dtype)) for _ in range(3)]


def ours(wanted: dict[str, Any], length: int, dtype: str) -> Call:
    q, k, v = tensors(length, dtype)
    return lambda: regard.weights(q, k).attend(v, **wanted)


def plain(length: int, dtype: str) -> Call:
    """Plain PyTorch in the arrays' own type."""
    q, k, v = tensors(length, dtype)

    def run() -> Any:
        weights = (q @ k.mT * 0.125).softmax(dim=-1)
        return weights @ v, weights.sum(dim=-2)

    return run


def eager(length: int, dtype: str) -> Call:
    """Hugging Face's eager attention, which returns weights; and their column sums."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    q, k, v = tensors(length, dtype)
    module = torch.nn.Module().eval()
    module.num_key_value_groups = 1

    def run() -> Any:
        output, weights = eager_attention_forward(module, q, k, v, None, 0.125)
        return output, weights.sum(dim=-2)

    return run


def own(dtype: str) -> list[dict[str, Any]]:
    return [_turns("read-outs", dtype, WANTED)]


def each(dtype: str) -> list[dict[str, Any]]:
    alone = {"output": {}, "lse": {"lse": True}, **{name: {name: True} for name in KINDS}}
    return [_turns("each alone", dtype, alone)]


def _turns(label: str, dtype: str, wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    calls = {name: ours(given, LENGTH, dtype) for name, given in wanted.items()}
    times = alternate(calls, seconds=5, least=3)
    base = times["output"].median
    for name, spent in times.items():
        print(f"{dtype:<9} {name:<15} {spent.median:8.1f} ms  {spent.median / base:5.2f}x")
    return {"case": label, "dtype": dtype, **{name: asdict(t) for name, t in times.items()}}


def peers(dtype: str) -> list[dict[str, Any]]:
    calls = {"regard": ours(WANTED["received"], LENGTH, dtype), "plain": plain(LENGTH, dtype)}
    if dtype == "bfloat16":
        calls["eager"] = eager(LENGTH, dtype)
    return [record(f"{dtype} output and column sums", dtype, alternate(calls, 1, 2))]


def memory(dtype: str) -> list[dict[str, Any]]:
    rows = []
    cases = [("plain" if dtype == "float32" else "eager", LENGTH)]
    cases += [(name, length) for length in (LENGTH, 4 * LENGTH) for name in WANTED]
    for name, length in cases:
        command = [sys.executable, __file__, "grow", name, str(length), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        print(f"{dtype:<9} {length:>6} {name:<10} {rows[-1]['MiB']:8.1f} MiB", flush=True)
    return rows


def grow(name: str, length: int, dtype: str) -> None:
    """The growth of this process's peak in one call, after a small one."""
    kinds = {"plain": plain, "eager": eager}
    make = kinds.get(name) or partial(ours, WANTED.get(name, {}))
    make(64, dtype)()
    call = make(length, dtype)
    before = peak()
    call()
    growth = {"read_outs": name, "length": length, "dtype": dtype, "MiB": peak() - before}
    print(json.dumps(growth))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "grow":
        grow(rest[0], int(rest[1]), rest[2])
        return
    (dtype,) = rest
    rows = {"own": own, "each": each, "peers": peers, "memory": memory}[what](dtype)
    print(save(f"readouts_{what}_{dtype}", rows))


if __name__ == "__main__":
    main()
