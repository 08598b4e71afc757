"""The matrix unit of AMX: what it does in a way of its own, against the definition."""

from __future__ import annotations

import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import allowed, arrays, error, plain_error, truth
from regard.kernels import native
from regard.problem import make
from test_native import check, run

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no AMX")

DTYPES = ["bfloat16", "float16"]


@pytest.fixture(autouse=True)
def amx():
    native.select_isa("amx")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [3, 90])
def test_blocks_that_hidden_nan_spoils_are_done_again(dtype, queries):
    rng = np.random.default_rng(1)
    q, k, v = arrays(rng, (2, 12, 2, queries, 150, 40, 24), dtype)
    keep = rng.random((2, 150)) < 0.8
    options = {
        "bias": rng.standard_normal((12, 1, 150)).astype(np.float32),
        "sinks": rng.standard_normal(12).astype(np.float32),
        "softcap": 3.0,
    }
    for extra in ({}, {"dropout_p": 0.2, "dropout_seed": 3}, options):
        extra["mask"] = regard.keys(keep) & regard.causal(70)
        clean = make(q, k, v, **extra)
        hidden = ~keep[:, None, :, None]
        bad_k, bad_v = (
            np.where(hidden, np.full_like(a, x), a) for a, x in ((k, np.nan), (v, np.inf))
        )
        y, lse = run(make(q, bad_k, bad_v, **extra))
        exact, total = truth(clean)
        assert error(y, exact) <= allowed(plain_error(clean, exact), exact, dtype)
        assert error(lse, total) <= 2e-5


@pytest.mark.parametrize("size", [2.0**-13, 1.0, 65504.0])
def test_float16_of_any_size(size):
    """From subnormal halves, whose parts are no subnormals, to the largest."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.integers(-2047, 2048, (1, 2, n, 40)) / 2047 for n in (70, 90, 90))
    q, k, v = ((a * size).astype(np.float16) for a in (q, k, v))
    check(make(q, k, v, scale=0.5 / size**2))


def test_infinite_values_arrive_as_they_are():
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 70, 90, 40, 40), "float16")
    v[..., 3, 5], v[..., 4, 6] = np.inf, np.nan
    y, _ = run(make(q, k, v))
    expected = truth(make(q, k, v))[0]
    np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    k[..., 7, :] = -np.inf * np.sign(q[0, 0, 0])
    y, lse = run(make(q, k, v[..., :5]))
    expected, total = truth(make(q, k, v[..., :5]))
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected))
    np.testing.assert_array_equal(np.isfinite(lse), np.isfinite(total))
    assert np.isfinite(lse[0, 0, 0])
