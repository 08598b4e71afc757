"""Does a mask cost what it shows? Windows, documents and padding beside a dense mask in PyTorch.

    python benchmarks/bench_masks.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Beside PyTorch's fused attention with the dense mask, and its compiled FlexAttention. Writes
benchmarks/results/ISA/masks.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import alternate, measure, record
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard
from regard.masks import Extent, Mask, visibility

_LENGTHS = torch.linspace(256, 1792, 8).long()

# Name, (B, H, L, D), the mask, and the same as FlexAttention is told of it.
CASES: list[tuple[str, tuple[int, int, int, int], Mask, Callable[..., Any]]] = [
    (
        "window(255, 0)",
        (1, 8, 4096, 64),
        regard.window(255, 0),
        lambda b, h, i, j: (j <= i) & (i - j <= 255),
    ),
    (
        "16 documents of 512",
        (1, 8, 8192, 64),
        regard.documents((torch.arange(8192) // 512)[None]),
        lambda b, h, i, j: i // 512 == j // 512,
    ),
    (
        "half of the keys are padding",
        (8, 8, 2048, 64),
        regard.lengths(keys=_LENGTHS),
        lambda b, h, i, j: j < _LENGTHS[b],
    ),
    (
        "causal | prefix(256)",
        (1, 8, 2048, 64),
        regard.causal() | regard.prefix(256),
        lambda b, h, i, j: (j <= i) | (j < 256),
    ),
]


def flex(q: Tensor, k: Tensor, v: Tensor, sees: Callable[..., Any]) -> Callable[[], Any]:
    """Compiled FlexAttention."""
    torch._dynamo.reset()
    batch, _, length, _ = q.shape
    blocks = create_block_mask(sees, batch, None, length, length, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=blocks)


def row(
    label: str,
    shape: tuple[int, int, int, int],
    mask: Mask,
    sees: Callable[..., Any],
    dtype: str,
) -> dict[str, Any]:
    batch, heads, length, _ = shape
    q, k, v = (torch.randn(shape, dtype=getattr(torch, dtype)) for _ in range(3))
    seen = visibility(mask, Extent((batch,), heads, length, length)).as_dense(length)
    dense = torch.from_numpy(seen.copy())
    calls = {
        "regard": lambda: regard.attention(q, k, v, mask=mask),
        "torch": lambda: sdpa(q, k, v, attn_mask=dense),
        "flex": flex(q, k, v, sees),
    }
    with torch.no_grad():
        return record(label, dtype, alternate(calls, seconds=3))


def main() -> None:
    cases = {}
    for dtype in ("float32", "bfloat16"):
        for name, shape, mask, sees in CASES:
            label = f"{dtype} {shape} {name}"
            cases[label] = partial(row, label, shape, mask, sees, dtype)
    measure("masks", cases)


if __name__ == "__main__":
    main()
