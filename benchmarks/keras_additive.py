"""Keras's AdditiveAttention, forward + backward, as a peer of bench_additive.py in its own process.

Reads "B H Lq Lk A threads xla" once, then computes once for every further line and answers with a
line. It needs TensorFlow and Keras, and neither PyTorch nor Regard.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def made(
    b: int, h: int, queries: int, keys: int, size: int, threads: int, xla: int
) -> Callable[[], Any]:
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    rng = np.random.default_rng(0)
    shapes = ((b * h, queries, size), (b * h, keys, size), (b * h, keys, size))
    q, k, v = (tf.Variable(rng.standard_normal(s).astype("float32")) for s in shapes)
    dy = tf.constant(rng.standard_normal(shapes[0]).astype("float32"))
    layer = keras.layers.AdditiveAttention()  # heads are batch elements to it
    layer([q, v, k])
    variables = [q, k, v, *layer.trainable_variables]

    @tf.function(jit_compile=bool(xla))
    def both() -> Any:
        with tf.GradientTape() as tape:
            y = layer([q, v, k])
        return tape.gradient(y, variables, output_gradients=dy)

    return lambda: [gradient.numpy() for gradient in both()]


def main() -> None:
    call = made(*map(int, sys.stdin.readline().split()))
    for _ in sys.stdin:
        call()
        print("done", flush=True)


if __name__ == "__main__":
    main()
