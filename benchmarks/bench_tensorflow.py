"""What does attention cost on TensorFlow's tensors, beside the expression that its users write?

    python benchmarks/bench_tensorflow.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Writes benchmarks/results/ISA/tensorflow.json. TensorFlow has no fused attention on the CPU: the
peer is softmax(q kᵀ · scale) v under tf.function, as keras.ops.dot_product_attention has it. The
smallest case shows what a call costs by itself; "empty" adds two such tensors, in the same way.
"threads" computes on NumPy arrays, before TensorFlow's threads are there, after, and by turns with
them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from harness import alternate, measure, record

import regard

# (B, L, H, size), as Keras has it.
CASES = [
    ("overhead", (1, 1, 1, 8), False),
    ("full", (1, 2048, 8, 64), False),
    ("causal", (1, 2048, 8, 64), True),
]


def ours(q, k, v, causal):
    return regard.attention(q, k, v, mask=regard.causal() if causal else None, layout="BLHD")


def theirs(q, k, v, causal):
    import tensorflow as tf

    scores = tf.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
    scores = tf.cast(scores, tf.float32)
    if causal:
        seen = tf.linalg.band_part(tf.ones(scores.shape[-2:], tf.bool), -1, 0)
        scores = tf.where(seen, scores, -np.inf)
    return tf.einsum("bnts,bsnh->btnh", tf.cast(tf.nn.softmax(scores), v.dtype), v)


def with_gradients(attend):
    import tensorflow as tf

    def call(q, k, v, causal):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            loss = tf.reduce_sum(attend(q, k, v, causal))
        return tape.gradient(loss, [q, k, v])

    return call


def row(label, name, shape, causal, dtype, gradients) -> dict[str, Any]:
    import tensorflow as tf

    q, k, v = (tf.cast(tf.random.normal(shape), dtype) for _ in range(3))
    mine, other = (with_gradients(f) if gradients else f for f in (ours, theirs))
    peers = {
        "regard": lambda: mine(q, k, v, causal),
        "regard, tf.function": partial(tf.function(mine), q, k, v, causal),
        "TensorFlow": partial(tf.function(other), q, k, v, causal),
    }
    if name == "overhead":
        peers["empty"] = lambda: tf.add(q, q)
        peers["empty, tf.function"] = partial(tf.function(tf.add), q, q)
    return record(label, dtype, alternate(peers, seconds=1))


def threads(label) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((1, 8, 2048, 64), np.float32)
    peers = {"regard": lambda: regard.attention(x, x, x)}
    times = dict(alternate(peers))
    import tensorflow as tf

    matrix = tf.random.normal((1024, 1024))
    peers["matmul"] = lambda: tf.matmul(matrix, matrix)
    peers["matmul"]()
    times["after TensorFlow's"] = alternate({"regard": peers["regard"]})["regard"]
    times |= {f"by turns: {name}": timing for name, timing in alternate(peers).items()}
    return record(label, "float32", times)


def main() -> None:
    label = "float32 (1, 8, 2048, 64) threads"
    cases = {label: partial(threads, label)}
    for dtype in ("float32", "bfloat16"):
        for name, shape, causal in CASES:
            for gradients in (False, True):
                label = f"{dtype} {shape} {name}{', gradients' if gradients else ''}"
                cases[label] = partial(row, label, name, shape, causal, dtype, gradients)
    measure("tensorflow", cases)


if __name__ == "__main__":
    main()
