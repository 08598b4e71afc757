"""What does a bias by distance cost? ALiBi and T5's beside none, and beside the same as an array.

    python benchmarks/bench_bias.py [--resume] [--seconds N] [TEXT …]     # see harness.py

"regard" is attention without a bias, so that ratios are what a bias costs. In the backward the
weight of T5's bias gets its gradient; ALiBi's slopes are fixed, as models have them. "array" is
ALiBi's bias as an array (H, Lq, Lk) that is there already, "torch" PyTorch's fused attention with
it. Writes benchmarks/results/ISA/bias.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import alternate, measure, record
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard
from regard.bias import alibi_slopes

SHAPE = (1, 8, 2048, 64)


def calls(causal: bool, dtype: str, backward: bool) -> dict[str, Callable[[], Any]]:
    kind, (_, heads, length, _) = getattr(torch, dtype), SHAPE
    q, k, v = (torch.randn(SHAPE, dtype=kind, requires_grad=backward) for _ in range(3))
    dy = torch.randn(SHAPE, dtype=kind)
    slopes = torch.from_numpy(alibi_slopes(heads)).float()
    weight = torch.randn(32, heads, requires_grad=backward)
    away = (torch.arange(length) - torch.arange(length)[:, None]).abs()
    array = (-slopes[:, None, None] * away).to(kind)
    shown = array.masked_fill(away.triu(1) > 0, -torch.inf) if causal else array
    mask = regard.causal() if causal else None
    t5 = partial(regard.t5_bias, weight, bidirectional=not causal)
    forwards: dict[str, tuple[Callable[[], Tensor], tuple[Tensor, ...]]] = {
        "regard": (lambda: regard.attention(q, k, v, mask=mask), (q, k, v)),
        "alibi": (
            lambda: regard.attention(q, k, v, mask=mask, bias=regard.alibi(slopes)),
            (q, k, v),
        ),
        "t5": (lambda: regard.attention(q, k, v, mask=mask, bias=t5()), (q, k, v, weight)),
        "array": (lambda: regard.attention(q, k, v, mask=mask, bias=array), (q, k, v)),
        "torch": (lambda: sdpa(q, k, v, attn_mask=shown), (q, k, v)),
    }
    if not backward:
        return {name: forward for name, (forward, _) in forwards.items()}
    return {
        name: (lambda forward=forward, to=to: torch.autograd.grad(forward(), to, dy))
        for name, (forward, to) in forwards.items()
    }


def row(label: str, causal: bool, dtype: str, backward: bool) -> dict[str, Any]:
    return record(label, dtype, alternate(calls(causal, dtype, backward), seconds=2))


def main() -> None:
    cases = {}
    for dtype in ("float32", "bfloat16"):
        for causal in (False, True):
            for backward in (False, True):
                what = f"{'causal' if causal else 'full'} {'both' if backward else 'forward'}"
                label = f"{dtype} {SHAPE} {what}"
                cases[label] = partial(row, label, causal, dtype, backward)
    measure("bias", cases)


if __name__ == "__main__":
    main()
