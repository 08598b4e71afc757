"""Call the native core, for sanitizers, on arrays that end where their memory ends."""

from __future__ import annotations

import ml_dtypes
import numpy as np

import regard
from regard.kernels import native
from regard.problem import make
from regard.readouts import KINDS, Gathering

TYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
SHAPES = [
    (1, 2, 1, 1, 239, 40, 24),
    (2, 2, 2, 127, 65, 59, 1),
    (1, 4, 2, 33, 130, 111, 96),
    (1, 1, 1, 100, 3, 1, 64),
    (1, 3, 3, 16, 16, 80, 256),
    (1, 4, 2, 1, 1100, 40, 32),
]


def strided(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array whose last element is the last of its memory, with gaps between its rows."""
    *lead, size = shape
    wide = rng.standard_normal((*lead, size + 3)).astype(dtype)
    return wide[..., 3:]


def masks(b: int, h: int, lq: int, lk: int, rng: np.random.Generator) -> list:
    return [
        None,
        regard.causal("lower_right"),
        regard.window(5, 3, 0) | regard.prefix(2),
        regard.keys(rng.random((b, lk)) < 0.5),
        rng.random((h, lq, lk)) < 0.3,
    ]


def main() -> None:
    rng = np.random.default_rng(0)
    calls = 0
    for isa in native.isas():
        native.select_isa(isa)
        for dtype in TYPES:
            for b, h, k, lq, lk, d, e in SHAPES:
                sizes = ((b, h, lq, d), (b, k, lk, d), (b, k, lk, e))
                q, key, v = (strided(rng, size, dtype) for size in sizes)
                wide = np.float64 if dtype is np.float64 else np.float32
                bias = rng.standard_normal((h, 1, lk)).astype(wide)
                sinks = rng.standard_normal(h).astype(wide)
                vector = rng.standard_normal((h, d)).astype(wide)
                for mask in masks(b, h, lq, lk, rng):
                    run(make(q, key, v, mask=mask, bias=bias, sinks=sinks, softcap=3.0))
                    run(make(q, key, v, mask=mask, dropout_p=0.2, dropout_seed=1))
                    for activation in ("tanh", "leaky_relu"):
                        score = regard.Additive(None, None, vector, activation)
                        run(make(q, key, v, mask=mask, score=score))
                    calls += 4
    print(calls, "calls")


def run(problem) -> None:
    extent = problem.extent
    output = np.empty((*extent.shape[:-1], problem.value_size), problem.query.dtype)
    lse = np.empty(extent.shape[:-1], problem.accumulation_dtype)
    native.forward(problem, output, lse)
    native.scores(problem, 0, 0, slice(0, extent.queries), slice(0, extent.keys))
    gathering = Gathering(
        problem,
        "native",
        {
            **{name: {} for name in KINDS if name != "mass"},
            "mass": {"keys": np.arange(extent.keys) % 3 - 1},
            "received": {"reduce": "mean", "groups": np.arange(extent.queries) // 50 - 1},
        },
    )
    native.read_out(problem, output, lse, gathering.fields)
    gathering.sweep(lse.reshape(extent.flat_batch, extent.heads, extent.queries))
    gathering.results(lse.reshape(extent.flat_batch, extent.heads, extent.queries))
    wanted = {
        "d_query": np.empty(problem.query.shape, problem.query.dtype),
        "d_key": np.empty(problem.key.shape, problem.key.dtype),
        "d_value": np.empty(problem.value.shape, problem.value.dtype),
    }
    if problem.bias is not None:
        wanted["d_bias"] = np.empty(problem.bias.shape, lse.dtype)
        wanted["d_sinks"] = np.empty(problem.sinks.shape, lse.dtype)
    if problem.vector is not None:
        wanted["d_vector"] = np.empty((*problem.query.shape[:2], problem.head_size), lse.dtype)
    native.backward(problem, output, lse, np.ones_like(output), np.ones_like(lse), **wanted)


if __name__ == "__main__":
    main()
