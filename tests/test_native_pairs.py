"""Pairs of bfloat16: what these kernels do in a way of their own, against the definition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import arrays, problem
from regard.kernels import native
from regard.problem import make
from test_native import check, check_backward, run

pytestmark = pytest.mark.skipif(
    "avx512bf16" not in ISAS, reason="this machine does not multiply pairs of bfloat16"
)


@pytest.fixture(autouse=True)
def pairs():
    native.select_isa("avx512bf16")


@pytest.mark.parametrize("size", [2, 6, 30, 34, 62, 66])
def test_head_sizes_that_fill_no_vector(size):
    rng = np.random.default_rng(size)
    check(problem(rng, (1, 2, 1, 70, 131, size, size + 1), "bfloat16"))
    check_backward(problem(rng, (1, 2, 1, 70, 131, size, size), "bfloat16"))
    check_backward(problem(rng, (1, 2, 1, 70, 131, size, size + 1), "bfloat16"))


@pytest.mark.parametrize("queries", [17, 33, 40, 64, 90])
def test_rows_that_fill_no_pair_of_vectors(queries):
    rng = np.random.default_rng(queries)
    check_backward(problem(rng, (1, 2, 1, queries, 101, 32, 32), "bfloat16"))


@pytest.mark.parametrize("left", [20, 33, 90])
def test_windows_that_begin_between_two_keys_of_a_pair(left):
    rng = np.random.default_rng(left)
    shape = (2, 2, 1, 300, 300, 32, 32)
    check_backward(problem(rng, shape, "bfloat16", mask=regard.window(left, 7)))
    check(problem(rng, shape, "bfloat16", mask=regard.window(left, 7)))


@pytest.mark.parametrize("spare", [1, 2])
@pytest.mark.parametrize("sizes", [(32, 32), (31, 32), (32, 31)], ids=str)
def test_keys_and_values_that_lie_any_number_of_elements_apart(sizes, spare):
    q, k, v = arrays(np.random.default_rng(0), (1, 2, 2, 70, 131, *sizes), "bfloat16")
    for prob in (make(q, apart(k, spare), v), make(q, k, apart(v, spare))):
        check(prob)
        check_backward(prob)


def apart(a: np.ndarray, spare: int) -> np.ndarray:
    """The same, with NaN between its rows."""
    wide = np.full((*a.shape[:-1], a.shape[-1] + spare), np.nan, a.dtype)
    wide[..., :-spare] = a
    return wide[..., :-spare]


def test_an_odd_number_of_keys_reads_nothing_behind_the_last():
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 70, 96, 32, 32), "bfloat16")
    k[..., -1, :] = v[..., -1, :] = np.nan
    prob = make(q, k[..., :-1, :], v[..., :-1, :])
    check(prob)
    check_backward(prob)


def test_dropout_goes_into_the_pairs():
    rng = np.random.default_rng(3)
    check_backward(
        problem(rng, (1, 4, 2, 70, 131, 32, 32), "bfloat16", dropout_p=0.4, dropout_seed=5)
    )


def test_a_negative_scale_and_0():
    for scale in (-0.3, 0.0):
        prob = problem(np.random.default_rng(1), (1, 2, 1, 70, 90, 32, 32), "bfloat16", scale=scale)
        check(prob)
        check_backward(prob)


def test_subnormal_elements_count_as_0():
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 40, 40, 32, 32), "bfloat16")
    tiny = float(ml_dtypes.finfo(ml_dtypes.bfloat16).smallest_subnormal)
    v[..., :16] = tiny
    y, _ = run(make(q, k, v))
    assert (y[..., :16] == 0).all() and (y[..., 16:] != 0).any()


def test_weights_are_rounded_to_nearest():
    # Cut instead, they would make outputs smaller by 0.1 % on the whole.
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (1, 1, 1, 64, 512, 32, 256), "bfloat16")
    v[...] = rng.uniform(1, 2, v.shape[-1])
    y, _ = run(make(q, k, v))
    assert abs((y.astype(float) / v[..., :1, :].astype(float)).mean() - 1) < 3e-4


def test_gradients_of_bias_and_sinks():
    rng = np.random.default_rng(2)
    prob = problem(
        rng,
        (2, 4, 2, 90, 130, 24, 16),
        "bfloat16",
        bias=rng.standard_normal((4, 1, 130)).astype(np.float32),
        sinks=rng.standard_normal(4).astype(np.float32),
        mask=regard.window(60, 20, 10),
    )
    check(prob)
    check_backward(prob)
