"""The matrix unit of AMX: what it does in a way of its own, against the definition."""

from __future__ import annotations

import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import allowed, arrays, error, plain_error, truth
from regard.kernels import native
from regard.problem import make
from test_native import run

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no AMX")

DTYPES = ["bfloat16"]


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
