"""What do pages cost? Decoding from a cache in pages beside the same in one piece, and gathered.

    python benchmarks/bench_paging.py [--resume] [--seconds N] [TEXT …]     # see harness.py

"regard" is attention on keys and values in one piece, so that ratios are what pages cost. "gather"
copies the pages into one piece and attends to that. Writes benchmarks/results/ISA/paging.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import alternate, measure, record
from torch import Tensor

import regard

BATCH, HEADS, KEY_HEADS, LENGTH, SIZE = 4, 32, 8, 4096, 128
PAGES = (16, 64, 128, 256)


def calls(page: int, dtype: str) -> dict[str, Callable[[], Any]]:
    kind, count = getattr(torch, dtype), LENGTH // page
    query = torch.randn(BATCH, HEADS, 1, SIZE, dtype=kind)
    shape = (BATCH * count, KEY_HEADS, page, SIZE)
    keys, values = (torch.randn(shape, dtype=kind) for _ in range(2))
    table = torch.randperm(BATCH * count).reshape(BATCH, count)
    lengths = torch.full((BATCH,), LENGTH)

    def whole(pages: Tensor) -> Tensor:
        return pages[table].transpose(1, 2).reshape(BATCH, KEY_HEADS, LENGTH, SIZE)

    k, v = whole(keys), whole(values)
    return {
        "regard": lambda: regard.attention(query, k, v),
        "pages": lambda: regard.paged_attention(query, keys, values, table, lengths),
        "gather": lambda: regard.attention(query, whole(keys), whole(values)),
    }


def row(label: str, page: int, dtype: str) -> dict[str, Any]:
    return record(label, dtype, alternate(calls(page, dtype), seconds=2))


def main() -> None:
    cases = {}
    for dtype in ("float32", "bfloat16"):
        for page in PAGES:
            label = f"{dtype} {BATCH} x {LENGTH}, pages of {page}"
            cases[label] = partial(row, label, page, dtype)
    measure("paging", cases)


if __name__ == "__main__":
    main()
