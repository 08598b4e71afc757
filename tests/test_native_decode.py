"""Few queries against many keys: the native core cuts the keys into chunks and merges them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import arrays, error, problem, truth
from regard.problem import make
from test_native import DTYPES, check, run

pytestmark = pytest.mark.skipif(not ISAS, reason="no native core is installed")

KEYS = 2500  # four chunks or more, none of them of whole tiles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 64])
def test_every_number_of_queries(isa, dtype, queries):
    for size in (32, 20):
        check(problem(np.random.default_rng(queries), (1, 2, 2, queries, 1100, size, size), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 3, 4, 12])
def test_queries_that_share_keys(isa, dtype, group):
    shape = (2, 2 * group, 2, 1, KEYS, 64, 32)
    check(problem(np.random.default_rng(group), shape, dtype))


def test_options_and_masks(isa):
    rng = np.random.default_rng(0)
    for mask in (
        regard.causal("lower_right"),
        regard.window(1200, 0, "lower_right"),
        regard.prefix(100) | regard.window(30, 0, "lower_right"),
        regard.lengths([0, 1234]),
        rng.random((2, 4, 3, KEYS)) < 0.3,
        regard.keys(rng.random((2, KEYS)) < 0.01),
    ):
        options = {
            "bias": rng.standard_normal((4, 1, KEYS)).astype(np.float32),
            "sinks": rng.standard_normal(4).astype(np.float32),
            "softcap": 3.0,
        }
        for dtype in ("float32", "bfloat16"):
            check(problem(rng, (2, 4, 2, 3, KEYS, 32, 32), dtype, mask=mask, **options))
            check(problem(rng, (2, 4, 2, 3, KEYS, 32, 32), dtype, mask=mask))


def test_dropout(isa):
    shape = (1, 2, 1, 3, KEYS, 16, 16)
    prob = problem(np.random.default_rng(0), shape, dropout_p=0.3, dropout_seed=5)
    assert error(run(prob)[0], truth(prob)[0]) < 1e-5


@pytest.mark.parametrize("sinks", [None, np.array([0.5, -2], np.float32)])
def test_chunks_in_which_nothing_is_seen(isa, sinks):
    q, k, v = arrays(np.random.default_rng(0), (1, 2, 2, 4, KEYS, 16, 16))
    mask = np.zeros((4, KEYS), bool)
    mask[0, 3], mask[1, -1], mask[2, 700:900] = True, True, True
    prob = make(q, k, v, mask=mask, sinks=sinks)
    check(prob)
    y, lse = run(prob)
    assert not y[0, :, 3].any()
    np.testing.assert_array_equal(lse[0, :, 3], -np.inf if sinks is None else sinks)


def test_scores_of_very_different_size_in_different_chunks(isa):
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 2, KEYS, 16, 16))
    k *= np.linspace(0, 300, KEYS, dtype=np.float32)[:, None]
    check(make(q, k, v))


def test_the_same_bits_for_any_number_of_threads(isa):
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    rng = np.random.default_rng(0)
    mask = rng.random((1, KEYS)) < 0.9
    shape = (1, 4, 1, 1, KEYS, 64, 64)
    problems = [problem(rng, shape, dtype, mask=mask) for dtype in DTYPES]
    problems += [problem(rng, (1, 1, 1, 150, KEYS, 32, 32), mask=regard.causal(KEYS - 150))]
    try:
        for prob in problems:
            seen = set()
            for n in range(12):
                openmp.omp_set_num_threads(1 + n % 4)
                seen.add(b"".join(array.tobytes() for array in run(prob)))
            assert len(seen) == 1
    finally:
        openmp.omp_set_num_threads(before)


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_nan_changes_no_bit(isa, dtype, queries):
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (1, 2, 2, queries, KEYS, 32, 32), dtype)
    keep = rng.random((queries, KEYS)) < 0.5
    keep[:, ::7] = False
    clean = run(make(q, k, v, mask=keep))
    k[..., ::7, :], v[..., ::14, :], v[..., 7::14, 5] = np.nan, np.nan, -np.inf
    # Spoilt rows are done again in float32.
    narrow = isa in ("amx", "avx512bf16") and dtype == "bfloat16"
    tolerance = 0.02 if narrow and queries > 8 else 0
    for found, expected in zip(run(make(q, k, v, mask=keep)), clean, strict=True):
        np.testing.assert_allclose(
            found.astype(float), expected.astype(float), rtol=tolerance, atol=tolerance / 10
        )


def test_a_visible_nan_arrives_where_it_is_seen(isa):
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (1, 1, 1, 70, KEYS, 16, 16))
    keep = np.ones((70, KEYS), bool)
    keep[:, 1000] = keep[:, 2000] = False
    keep[5, 1000] = True
    expected = run(make(q, k, v, mask=keep))[0]
    v[..., 1000, :3] = np.nan
    v[..., 2000, :] = np.nan
    y = run(make(q, k, v, mask=keep))[0]
    assert np.isnan(y[0, 0, 5, :3]).all()
    expected[0, 0, 5, :3] = y[0, 0, 5, :3] = 0
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_strided_halves_are_read_in_place(isa):
    rng = np.random.default_rng(0)
    for dtype in ("float16", "bfloat16", "float32"):
        q, k, v = arrays(rng, (1, 2, 2, 2, 2 * KEYS, 40, 40), dtype)
        check(make(q[..., 3:35], k[..., ::2, 3:35], v[..., ::2, 5:37]))


@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 5, 8, 8), (1, 0, 1, 3, 5, 8, 8)])
def test_nothing_to_do(isa, shape):
    b, h, k, lq, lk, d, e = shape
    for dtype in (np.float32, np.float64):
        sizes = ((b, h, lq, d), (b, k, lk, d), (b, k, lk, e))
        y = regard.attention(*(np.zeros(size, dtype) for size in sizes), backend="native")
        assert y.shape == (b, h, lq, e)
