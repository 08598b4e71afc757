"""Read-outs in the matrix unit's own forward: from tallies of tiles, not from scores seen again."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import arrays, problem
from regard.kernels import native
from regard.problem import Problem, make
from regard.readouts import Gathering
from test_native import MASKS, run, run_alone
from test_readouts import Case, close, requests

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no AMX")

DTYPES = ["bfloat16", "float32"]


@pytest.fixture(autouse=True)
def amx():
    native.select_isa("amx")


def wanted(lq: int, lk: int) -> dict[str, dict[str, Any]]:
    """What tallies are enough for."""
    rest = requests(lq, lk)
    del rest["top_queries"], rest["similarity"]
    return {**rest, "received": {"groups": np.arange(lq) // 50 % 3 - 1}}


def attend(prob: Problem, asked: dict[str, dict[str, Any]]) -> tuple[Any, Any, dict[str, Any]]:
    gathering = Gathering(prob, "native", asked)
    y, lse = (np.full_like(a, 7) for a in run(prob))
    native.read_out(prob, y, lse, gathering.fields)
    return y, lse, gathering.results(lse)


def judge(case: Case) -> None:
    y, lse, found = attend(case.prob, case.wanted)
    np.testing.assert_array_equal(y, run_alone(case.prob))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(lse, run(case.prob)[1], rtol=5e-6, atol=5e-6)
    case.judge(found)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_mask(dtype, mask):
    for lengths in ((215, 301), (100, 520)):
        shape = (2, 2, 1, *lengths, 32, 24)
        prob = problem(np.random.default_rng(1), shape, dtype, mask=MASKS[mask](2, 2, *lengths))
        judge(Case(prob, wanted(*lengths)))


def half_hidden(shape: tuple[int, ...]) -> np.ndarray:
    """A bias that hides keys: as masks reach models that add them."""
    rng = np.random.default_rng(2)
    bias = rng.standard_normal(shape).astype(np.float32)
    bias[rng.random(shape) < 0.5] = -np.inf
    bias[..., 0] = 0
    return bias


@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 5.0},
        {"sinks": np.array([0.5, 9], np.float32)},
        {"bias": np.random.default_rng(3).standard_normal((1, 2, 200, 300)).astype(np.float32)},
        {"bias": half_hidden((1, 2, 200, 300))},
        {"scale": 0.8},
    ],
    ids=["softcap", "sinks", "bias", "hiding bias", "large scores"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_becomes_of_scores(dtype, options):
    prob = problem(np.random.default_rng(1), (1, 2, 1, 200, 300, 64, 64), dtype, **options)
    judge(Case(prob, wanted(200, 300)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_at_a_time_and_cells_that_tiles_fill(dtype):
    prob = problem(np.random.default_rng(1), (1, 1, 1, 256, 512, 64, 64), dtype)
    pooled = {"shape": (4, 8), "reduce": "both"}
    most = {"received": {"reduce": "max"}}
    for asked in (
        {"pooled": pooled},
        {"top_k": {"k": 40}},
        {"entropy": {}},
        {"received": {}},
        most,
    ):
        judge(Case(prob, asked))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_of_weights_that_are_too_small_to_be_told_apart(dtype):
    """The second largest score is 200 below the first: relative to it, float32 has nothing left."""
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 256, 512, 32, 32), dtype)
    q[...], k[...] = 0, 0
    q[..., 0], k[..., 0] = 1, -np.arange(512) / 8
    k[..., 5, 0] = 200
    _, _, found = attend(make(q, k, v, scale=1.0), {"top_k": {"k": 3}})
    assert found["top_k"].keys[0, 0, 100].tolist() == [5, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_nan_leaves_no_trace_and_a_visible_one_does(dtype):
    q, k, v = arrays(np.random.default_rng(0), (1, 2, 2, 256, 300, 32, 16), dtype)
    asked = wanted(256, 300)
    mask = regard.lengths([280])
    clean = attend(make(q, k, v, mask=mask), asked)[2]
    k[..., 280:, :] = v[..., 280:, :] = np.nan
    spoiled = make(q, k, v, mask=mask)
    y, _, found = attend(spoiled, asked)
    np.testing.assert_array_equal(y, run_alone(spoiled))
    for name in asked:
        parts, others = (x if isinstance(x, tuple) else (x,) for x in (found[name], clean[name]))
        for one, other in zip(parts, others, strict=True):
            close(one, other, name)
    q[0, 0, 17] = np.nan
    broken = attend(make(q, k, v, mask=mask), asked)[2]["entropy"]
    assert np.isnan(broken[0, 0, 17]) and np.isfinite(np.delete(broken[0, 0], 17)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_for_any_number_of_threads(dtype):
    openmp = ctypes.CDLL("libgomp.so.1")
    before, seen = openmp.omp_get_max_threads(), set()
    shape = (1, 8, 8, 223, 300, 64, 64)
    prob = problem(np.random.default_rng(0), shape, dtype, mask=regard.causal(200))
    try:
        for n in range(6):
            openmp.omp_set_num_threads(1 + n % 4)
            y, lse, found = attend(prob, wanted(223, 300))
            flat = (
                a for one in found.values() for a in (one if isinstance(one, tuple) else (one,))
            )
            seen.add(b"".join(np.ascontiguousarray(a).tobytes() for a in (y, lse, *flat)))
    finally:
        openmp.omp_set_num_threads(before)
    assert len(seen) == 1
