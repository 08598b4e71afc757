"""Does a mask cost what it shows? Windows, documents and padding beside a dense mask in PyTorch.

    python benchmarks/bench_masks.py

Writes benchmarks/results/masks.json.
"""

from __future__ import annotations

import torch
from harness import alternate, record, save
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard
from regard.masks import Extent, Mask, visibility

CASES: list[tuple[str, tuple[int, int, int, int], Mask]] = [
    ("window(255, 0)", (1, 8, 4096, 64), regard.window(255, 0)),
    ("16 documents of 512", (1, 8, 8192, 64), regard.documents((torch.arange(8192) // 512)[None])),
    (
        "half of the keys are padding",
        (8, 8, 2048, 64),
        regard.lengths(keys=torch.linspace(256, 1792, 8).long()),
    ),
    ("causal | prefix(256)", (1, 8, 2048, 64), regard.causal() | regard.prefix(256)),
]


def main() -> None:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, (b, h, length, d), mask in CASES:
            q, k, v = (torch.randn(b, h, length, d, dtype=dtype) for _ in range(3))
            seen = visibility(mask, Extent((b,), h, length, length)).as_dense(length)
            dense = torch.from_numpy(seen.copy())

            def ours(q=q, k=k, v=v, mask=mask):
                return regard.attention(q, k, v, mask=mask)

            def pytorch(q=q, k=k, v=v, dense=dense):
                return sdpa(q, k, v, attn_mask=dense)

            times = alternate({"regard": ours, "torch": pytorch}, seconds=3)
            kind = str(dtype).removeprefix("torch.")
            rows.append(record(f"{kind} {(b, h, length, d)} {name}", kind, times))
    print(save("masks", rows))


if __name__ == "__main__":
    main()
