"""What does attention cost on JAX arrays, under jit, beside jax.nn.dot_product_attention?

    python benchmarks/bench_jax.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Writes benchmarks/results/ISA/jax.json. The smallest case shows what a call costs by itself; "empty"
is a jitted function that adds two such arrays.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from harness import alternate, measure, record

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


def row(label, name, shape, causal, dtype, gradients) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, shape, dtype) for key in keys)
    peers = calls(q, k, v, causal, gradients)
    if name == "overhead":
        empty = jax.jit(jnp.add)
        peers["empty"] = lambda: jax.block_until_ready(empty(q, q))
    return record(label, dtype, alternate(peers, seconds=1))


def main() -> None:
    cases = {}
    for dtype in ("float32", "bfloat16"):
        # jax.nn cannot compile the smallest case's gradients in bfloat16.
        for name, shape, causal in CASES if dtype == "float32" else CASES[1:]:
            for gradients in (False, True):
                label = f"{dtype} {shape} {name}{', gradients' if gradients else ''}"
                cases[label] = partial(row, label, name, shape, causal, dtype, gradients)
    measure("jax", cases)


if __name__ == "__main__":
    main()
