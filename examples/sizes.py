"""A query of size 10 against keys of size 7: which scores can compare them.

python examples/sizes.py
"""

from __future__ import annotations

import numpy as np

import regard

rng = np.random.default_rng(0)
query = rng.standard_normal((1, 1, 10))  # one head, one query
keys = rng.standard_normal((1, 5, 7))  # five keys
values = rng.standard_normal((1, 5, 3))

try:
    regard.attention(query, keys, values)
except regard.errors.ShapeError as error:
    print(f"A dot product cannot:\n  {error}\n")

W = rng.standard_normal((10, 7))
Wq, Wk, v = rng.standard_normal((10, 8)), rng.standard_normal((7, 8)), rng.standard_normal(8)
scores = {
    "q W k, Luong": regard.Bilinear(W),
    "v · tanh(q Wq + k Wk), Bahdanau": regard.Additive(Wq, Wk, v),
    "v · leaky_relu(q Wq + k Wk), GATv2": regard.Additive(Wq, Wk, v, "leaky_relu"),
}
for name, score in scores.items():
    weights = regard.weights(query, keys, score=score)
    print(f"{name}:")
    print("  weights", weights.dense()[0, 0].round(2))
    print("  output ", (weights @ values)[0, 0].round(2))
