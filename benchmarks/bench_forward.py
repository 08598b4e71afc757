"""How fast is attention's forward, dense and causal, beside PyTorch's fused attention?

    python benchmarks/bench_forward.py [TEXT …]     # the cases whose label has every TEXT

Each case with one thread, and with all. Writes benchmarks/results/forward.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import alternate, chosen, counted, record, save, thread_counts, using
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard

# (B, H, K, Lq, Lk, D), and what a query sees: everything, what lies before it, or with a bias.
CASES = [
    ((1, 1, 1, 2048, 2048, 64), ""),
    ((1, 8, 8, 512, 512, 64), ""),
    ((1, 8, 8, 2048, 2048, 64), ""),
    ((1, 8, 8, 8192, 8192, 64), ""),
    ((1, 16, 16, 2048, 2048, 128), ""),
    ((8, 12, 12, 197, 197, 64), ""),
    ((32, 8, 8, 64, 64, 64), ""),
    ((1, 1, 1, 4, 4, 8), ""),
    ((1, 8, 8, 2048, 2048, 64), " causal"),
    ((1, 8, 8, 2048, 2048, 64), " float bias"),
    ((1, 32, 8, 1, 8192, 128), ""),
]


def calls(sizes: tuple[int, ...], option: str, dtype: str) -> dict[str, Callable[[], Any]]:
    b, h, k, lq, lk, d = sizes
    kind = getattr(torch, dtype)
    query = torch.randn(b, h, lq, d, dtype=kind)
    key, value = (torch.randn(b, k, lk, d, dtype=kind) for _ in range(2))
    causal = option == " causal"
    mask = regard.causal() if causal else None
    bias = torch.randn(b, h, lq, lk, dtype=kind) if option == " float bias" else None

    def ours() -> torch.Tensor:
        return regard.attention(query, key, value, mask=mask, bias=bias)

    def pytorch() -> torch.Tensor:
        return sdpa(query, key, value, bias, is_causal=causal, enable_gqa=h != k)

    return {"regard": ours, "torch": pytorch}


def main() -> None:
    rows = []
    cases = [
        (
            f"{dtype} {(b, h, lq, lk, d)}{option}, {counted(threads)}",
            *((b, h, k, lq, lk, d), option, dtype, threads),
        )
        for dtype in ("float32", "bfloat16")
        for (b, h, k, lq, lk, d), option in CASES
        for threads in thread_counts()
    ]
    for label, sizes, option, dtype, threads in chosen(cases):
        with using(threads):
            times = alternate(calls(sizes, option, dtype))
        rows.append(record(label, dtype, times))
    if len(rows) == len(cases):
        print(save("forward", rows))


if __name__ == "__main__":
    main()
