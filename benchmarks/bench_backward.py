"""How fast are forward and backward together, beside PyTorch's fused attention and the plain one?

    python benchmarks/bench_backward.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Each case with one thread, and with all. Writes benchmarks/results/ISA/backward.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import alternate, counted, measure, record, thread_counts, using
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard

CASES = [
    ((1, 1, 2048, 64), False),
    ((32, 8, 64, 64), False),
    ((1, 8, 512, 64), False),
    ((1, 8, 2048, 64), False),
    ((1, 8, 2048, 64), True),
    ((8, 12, 197, 64), False),
]


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(dim=-1) @ v


def calls(shape: tuple[int, ...], causal: bool, dtype: str) -> dict[str, Callable[[], Any]]:
    kind = getattr(torch, dtype)
    q, k, v = (torch.randn(shape, dtype=kind, requires_grad=True) for _ in range(3))
    dy = torch.randn(shape, dtype=kind)
    mask = regard.causal() if causal else None
    forwards: dict[str, Callable[[], Tensor]] = {
        "regard": lambda: regard.attention(q, k, v, mask=mask),
        "torch": lambda: sdpa(q, k, v, is_causal=causal),
        "plain": lambda: plain(q, k, v, causal),
    }
    return {
        name: (lambda forward=forward: torch.autograd.grad(forward(), (q, k, v), dy))
        for name, forward in forwards.items()
    }


def row(
    label: str, shape: tuple[int, ...], causal: bool, dtype: str, threads: int
) -> dict[str, Any]:
    with using(threads):
        return record(label, dtype, alternate(calls(shape, causal, dtype), seconds=2))


def main() -> None:
    cases = {}
    for dtype in ("float32", "bfloat16"):
        for shape, causal in CASES:
            for threads in thread_counts():
                what = f"{shape}{' causal' if causal else ''} forward + backward"
                label = f"{dtype} {what}, {counted(threads)}"
                cases[label] = partial(row, label, shape, causal, dtype, threads)
    measure("backward", cases)


if __name__ == "__main__":
    main()
