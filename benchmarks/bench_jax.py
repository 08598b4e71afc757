"""What does attention cost on JAX arrays, under jit, beside jax.nn.dot_product_attention?

    python benchmarks/bench_jax.py

Writes benchmarks/results/jax.json. The smallest case shows what a call costs by itself; "empty" is
a jitted function that adds two such arrays.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from harness import alternate, record, save

import regard

# (B, L, H, size), as jax.nn has it.
CASES = [
    ("overhead", (1, 1, 1, 8), False),
    ("full", (1, 2048, 8, 64), False),
    ("causal", (1, 2048, 8, 64), True),
]


def ours(q, k, v, causal):
    return regard.attention(q, k, v, mask=regard.causal() if causal else None, layout="BLHD")


def theirs(q, k, v, causal):
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal)


def calls(q, k, v, causal, gradients):
    """The same call by each, compiled."""

    def compiled(attend):
        def call(q, k, v):
            return attend(q, k, v, causal)

        if gradients:
            call = jax.grad(lambda *a: attend(*a, causal).astype(jnp.float32).sum(), (0, 1, 2))
        fast = jax.jit(call)
        return lambda: jax.block_until_ready(fast(q, k, v))

    return {"regard": compiled(ours), "jax.nn": compiled(theirs)}


def main() -> None:
    rows = []
    for dtype in ("float32", "bfloat16"):
        # jax.nn cannot compile the smallest case's gradients in bfloat16.
        for name, shape, causal in CASES if dtype == "float32" else CASES[1:]:
            keys = jax.random.split(jax.random.key(0), 3)
            q, k, v = (jax.random.normal(key, shape, dtype) for key in keys)
            for gradients in (False, True):
                peers = calls(q, k, v, causal, gradients)
                if name == "overhead":
                    empty = jax.jit(jnp.add)
                    peers["empty"] = lambda empty=empty, q=q: jax.block_until_ready(empty(q, q))
                times = alternate(peers, seconds=1)
                label = f"{dtype} {shape} {name}{', gradients' if gradients else ''}"
                rows.append(record(label, dtype, times))
    print(save("jax", rows))


if __name__ == "__main__":
    main()
