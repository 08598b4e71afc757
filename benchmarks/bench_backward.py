"""How fast are forward and backward together, beside PyTorch's fused attention and the plain one?

    python benchmarks/bench_backward.py

Writes benchmarks/results/backward.json.
"""

from __future__ import annotations

import torch
from harness import alternate, record, save
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard

CASES = [
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


def main() -> None:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape, causal in CASES:
            q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            dy = torch.randn(shape, dtype=dtype)
            mask = regard.causal() if causal else None

            def train(forward, q=q, k=k, v=v, dy=dy):
                return torch.autograd.grad(forward(q, k, v), (q, k, v), dy)

            calls = {
                "regard": lambda q, k, v, mask=mask: regard.attention(q, k, v, mask=mask),
                "torch": lambda q, k, v, causal=causal: sdpa(q, k, v, is_causal=causal),
                "plain": lambda q, k, v, causal=causal: plain(q, k, v, causal),
            }
            peers = {
                name: (lambda call=call, train=train: train(call)) for name, call in calls.items()
            }
            times = alternate(peers, seconds=3)
            kind = str(dtype).removeprefix("torch.")
            label = f"{kind} {shape}{' causal' if causal else ''} forward + backward"
            rows.append(record(label, kind, times))
    print(save("backward", rows))


if __name__ == "__main__":
    main()
