"""How fast is attention's forward, dense and causal, beside PyTorch's fused attention?

    python benchmarks/bench_forward.py

Writes benchmarks/results/forward.json.
"""

from __future__ import annotations

import torch
from harness import alternate, record, save
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard

# (B, H, K, Lq, Lk, D), causal
CASES = [
    ((1, 8, 8, 512, 512, 64), False),
    ((1, 8, 8, 2048, 2048, 64), False),
    ((1, 8, 8, 8192, 8192, 64), False),
    ((1, 16, 16, 2048, 2048, 128), False),
    ((8, 12, 12, 197, 197, 64), False),
    ((32, 8, 8, 64, 64, 64), False),
    ((1, 8, 8, 2048, 2048, 64), True),
    ((1, 32, 8, 1, 8192, 128), False),
]


def main() -> None:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for (b, h, k, lq, lk, d), causal in CASES:
            query = torch.randn(b, h, lq, d, dtype=dtype)
            key, value = (torch.randn(b, k, lk, d, dtype=dtype) for _ in range(2))
            mask = regard.causal() if causal else None

            def ours(query=query, key=key, value=value, mask=mask):
                return regard.attention(query, key, value, mask=mask)

            def pytorch(query=query, key=key, value=value, causal=causal, grouped=h != k):
                return sdpa(query, key, value, is_causal=causal, enable_gqa=grouped)

            times = alternate({"regard": ours, "torch": pytorch})
            name = str(dtype).removeprefix("torch.")
            label = f"{name} {(b, h, lq, lk, d)}{' causal' if causal else ''}"
            rows.append(record(label, name, times))
    print(save("forward", rows))


if __name__ == "__main__":
    main()
