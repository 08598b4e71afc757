"""How fast is attention's forward beside PyTorch's fused attention, and beside what can be done?

    python benchmarks/bench_forward.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Each case with one thread, and with all. "limit" is what bounds the case, measured in turns with it
(probe.py): the useful multiplications of float32 in registers; in bfloat16 both products and the
exponentials, on packed operands in the caches for the matrix unit and in registers for pairs; for
one query, reading the very keys and values. So its ratio is the share of the limit that is reached.
Writes benchmarks/results/ISA/forward.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import probe
import torch
from harness import alternate, counted, measure, record, thread_counts, using
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard

# (B, H, K, Lq, Lk, D), and what a query sees: everything, what lies before it, or with a bias.
N2048 = (1, 8, 8, 2048, 2048, 64)
CASES = [
    ((1, 1, 1, 2048, 2048, 64), ""),
    ((1, 8, 8, 512, 512, 64), ""),
    (N2048, ""),
    ((1, 8, 8, 8192, 8192, 64), ""),
    ((1, 16, 16, 2048, 2048, 128), ""),
    ((8, 12, 12, 197, 197, 64), ""),
    ((32, 8, 8, 64, 64, 64), ""),
    ((1, 1, 1, 4, 4, 8), ""),
    (N2048, " causal"),
    (N2048, " float bias"),
    ((1, 32, 8, 1, 8192, 128), ""),
]
HIGH = ' precision="high"'
ALSO = [("float16", ""), ("float32", HIGH)]  # N2048 only


def row(
    label: str, sizes: tuple[int, ...], option: str, dtype: str, threads: int
) -> dict[str, Any]:
    with using(threads):
        arrays = tensors(sizes, dtype)
        work = calls(*arrays, option)
        bound, limit = limited(*arrays, option)
        if limit:
            work["limit"] = limit
        return {**record(label, dtype, alternate(work)), "limited by": bound}


def tensors(sizes: tuple[int, ...], dtype: str) -> list[Tensor]:
    b, h, k, lq, lk, d = sizes
    shapes = ((b, h, lq, d), (b, k, lk, d), (b, k, lk, d))
    return [torch.randn(shape, dtype=getattr(torch, dtype)) for shape in shapes]


def calls(query: Tensor, key: Tensor, value: Tensor, option: str) -> dict[str, Callable[[], Any]]:
    causal, grouped = option == " causal", query.shape[1] != key.shape[1]
    mask = regard.causal() if causal else None
    precision = "high" if option == HIGH else None
    bias = None
    if option == " float bias":
        bias = torch.randn(*query.shape[:3], key.shape[2], dtype=query.dtype)

    def ours() -> Tensor:
        return regard.attention(query, key, value, mask=mask, bias=bias, precision=precision)

    def pytorch() -> Tensor:
        return sdpa(query, key, value, bias, is_causal=causal, enable_gqa=grouped)

    return {"regard": ours, "torch": pytorch}


def limited(query: Tensor, key: Tensor, value: Tensor, option: str) -> tuple[str | None, Any]:
    """What bounds the case, and a call that takes as long as that; None: the call itself."""
    limits = probe.load()
    batch, heads, queries, size = query.shape
    pairs = batch * heads * queries * key.shape[2]
    if option == " causal":
        pairs = batch * heads * queries * (queries + 1) // 2
    operations = 4.0 * pairs * size
    if (
        limits is None
        or operations < 1e6
        or (str(query.dtype).removeprefix("torch."), option) in ALSO
    ):
        return None, None
    if queries == 1:
        return "reading keys and values", limits.read([key, value])
    if query.dtype == torch.bfloat16 and (fused := limits.fused(pairs, size)):
        return "products of bfloat16 and exponentials", fused
    return "float32 multiply-adds in registers", limits.fma(operations)


def main() -> None:
    cases = {}
    every = [(dtype, *case) for dtype in ("float32", "bfloat16") for case in CASES]
    for dtype, sizes, option in [*every, *((dtype, N2048, option) for dtype, option in ALSO)]:
        b, h, _, lq, lk, d = sizes
        for threads in thread_counts():
            label = f"{dtype} {(b, h, lq, lk, d)}{option}, {counted(threads)}"
            cases[label] = partial(row, label, sizes, option, dtype, threads)
    measure("forward", cases)


if __name__ == "__main__":
    main()
