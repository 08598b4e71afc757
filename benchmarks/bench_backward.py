"""How fast are forward and backward together, beside PyTorch's fused attention and the plain one?

    python benchmarks/bench_backward.py [TEXT …]     # the cases whose label has every TEXT

Each case with one thread, and with all. Writes benchmarks/results/backward.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import alternate, chosen, counted, record, save, thread_counts, using
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


def main() -> None:
    rows = []
    cases = [
        (
            f"{dtype} {shape}{' causal' if causal else ''} forward + backward, {counted(threads)}",
            *(shape, causal, dtype, threads),
        )
        for dtype in ("float32", "bfloat16")
        for shape, causal in CASES
        for threads in thread_counts()
    ]
    for label, shape, causal, dtype, threads in chosen(cases):
        with using(threads):
            rows.append(record(label, dtype, alternate(calls(shape, causal, dtype), seconds=3)))
    if len(rows) == len(cases):
        print(save("backward", rows))


if __name__ == "__main__":
    main()
