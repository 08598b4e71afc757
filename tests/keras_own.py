"""Keras's own tests of its attention, with Regard's layers and function in the places of Keras's.

    KERAS_BACKEND=jax python tests/keras_own.py [EXPRESSION]

They come with Keras's wheel. The one of Keras's attention layers that they reach by
`keras.src.layers`, and the function by `keras.src.ops.nn`, are exchanged before they run. An
expression chooses some of them, as pytest's -k.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import keras
import pytest
from keras.src import layers
from keras.src.ops import nn

import regard.keras

LAYERS = ("MultiHeadAttention", "GroupedQueryAttention", "Attention", "AdditiveAttention")
SOURCE = Path(keras.src.__file__).parent
FILES = [
    *(f"layers/attention/{name}_test.py" for name in ("multi_head_attention",)),
    *(f"layers/attention/{name}_test.py" for name in ("grouped_query_attention", "attention")),
    "layers/attention/additive_attention_test.py",
    "ops/nn_test.py",
]


class Marks:
    """What Keras's conftest.py does, which is not in its wheel."""

    def pytest_configure(self, config):
        config.addinivalue_line("markers", "requires_trainable_backend: not for NumPy")

    def pytest_collection_modifyitems(self, items):
        if os.environ["KERAS_BACKEND"] == "numpy":
            for item in items:
                if item.get_closest_marker("requires_trainable_backend"):
                    item.add_marker(pytest.mark.skip(reason="needs a backend with gradients"))


def main() -> int:
    for name in LAYERS:
        setattr(layers, name, getattr(regard.keras, name))
    nn.dot_product_attention = regard.keras.dot_product_attention
    nn.DotProductAttention = regard.keras.function.DotProductAttention
    chosen = sys.argv[1] if len(sys.argv) > 1 else "attention or Attention or keras_layers"
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "-k", chosen]
    files = [Path(__file__).with_name("keras_layers.py"), *(SOURCE / name for name in FILES)]
    return int(pytest.main([*options, *map(str, files)], plugins=[Marks()]))


if __name__ == "__main__":
    sys.exit(main())
