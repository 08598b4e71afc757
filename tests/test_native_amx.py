"""The matrix unit of AMX: what it does in a way of its own, against the definition."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import allowed, arrays, error, plain_error, problem, truth
from regard.kernels import native
from regard.problem import Problem, make
from test_native import HEAD_SIZES, LENGTHS, MASKS, run, run_alone

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no AMX")

KINDS = [
    ("bfloat16", "highest"),
    ("float16", "highest"),
    ("float32", "high"),
    ("float32", "highest"),
]
# float32 has 24 bits, and its products 16 at precision "high".
FACTORS = {None: 2, "highest": 2, "high": 2 * 2**8}
HIGH = {"dtype": "float32", "precision": "high"}


@pytest.fixture(autouse=True)
def amx():
    native.select_isa("amx")


def check(prob: Problem, clean: Problem | None = None) -> None:
    """`clean`: the same problem without what nobody should notice."""
    y, lse = run(prob)
    clean = clean or prob
    exact, total = truth(clean)
    limit = allowed(plain_error(clean, exact), exact, prob.dtype, FACTORS[prob.precision])
    assert error(y, exact) <= limit
    assert error(run_alone(prob), exact) <= limit
    assert error(lse, total) <= 2e-5 * max(1, np.abs(total[np.isfinite(total)]).max(initial=0))


def options(rng: np.random.Generator, heads: int, keys: int) -> dict[str, object]:
    return {
        "bias": rng.standard_normal((heads, 1, keys)).astype(np.float32),
        "sinks": rng.standard_normal(heads).astype(np.float32),
        "softcap": 3.0,
    }


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_split_products_of_ragged_lengths(lengths):
    for mask in (None, regard.causal("lower_right")):
        check(problem(np.random.default_rng(0), (1, 2, 1, *lengths, 40, 24), mask=mask, **HIGH))


@pytest.mark.parametrize("size", HEAD_SIZES)
def test_split_products_of_head_sizes(size):
    other = HEAD_SIZES[-1 - HEAD_SIZES.index(size)]
    check(problem(np.random.default_rng(size), (1, 2, 2, 100, 131, size, other), **HIGH))


@pytest.mark.parametrize("mask", MASKS)
def test_split_products_and_masks(mask):
    rng = np.random.default_rng(1)
    made = MASKS[mask](3, 4, 101, 201)
    check(problem(rng, (3, 4, 2, 101, 201, 32, 32), mask=made, **HIGH))
    check(problem(rng, (3, 4, 2, 101, 201, 32, 32), mask=made, **HIGH, **options(rng, 4, 201)))


@pytest.mark.parametrize("mask", MASKS)
def test_three_parts_and_masks(mask):
    rng = np.random.default_rng(1)
    made = MASKS[mask](2, 4, 223, 255)
    check(problem(rng, (2, 4, 2, 223, 255, 32, 32), mask=made))
    check(problem(rng, (2, 4, 2, 223, 255, 32, 32), mask=made, **options(rng, 4, 255)))


@pytest.mark.parametrize("mean", [0, 3])
def test_three_parts_are_taken_and_no_less_exact_than_float32(mean):
    errors = {"amx": np.zeros(2), "avx512": np.zeros(2)}
    for lengths in ((192, 128), (255, 2000), (509, 383)):
        for size, value_size in ((64, 64), (40, 24), (130, 17)):
            q, k, v = arrays(np.random.default_rng(0), (1, 2, 1, *lengths, size, value_size))
            prob = make(q, k, v + np.float32(mean))
            exact, total = truth(prob)
            outputs = []
            for isa, sums in errors.items():
                native.select_isa(isa)
                y, lse = run(prob)
                outputs.append(y)
                sums += np.square(y - exact).mean(), np.square(lse - total).mean()
            assert (outputs[0] != outputs[1]).any()
    assert (errors["amx"] <= errors["avx512"]).all()


def test_three_parts_of_any_size():
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 255, 150, 40, 40))
    for size in (1e-17, 1e-4, 1e17):
        check(make(q * size, k * size, v / size, scale=0.2 / size**2))
    # Lower parts are subnormal.
    tiny = make(q, k, v * np.float32(2.0**-115))
    assert error(run(tiny)[0], truth(tiny)[0]) < 1.2e-38
    # The largest float32 has no bfloat16 above it.
    v[..., 3, :] = np.finfo(np.float32).max
    largest = run(make(q, k, v))[0]
    native.select_isa("avx512")
    np.testing.assert_array_equal(largest, run(make(q, k, v))[0])


def test_attend_has_the_bits_of_attention_in_three_parts():
    q, k, v = arrays(np.random.default_rng(0), (1, 2, 1, 255, 150, 40, 40))
    y, _ = regard.weights(q, k).attend(v, lse=True, entropy=True)
    np.testing.assert_array_equal(y, regard.attention(q, k, v))


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_dropout_and_values_of_each_head(dtype, precision):
    rng = np.random.default_rng(4)
    q, k, _ = arrays(rng, (2, 6, 2, 223, 150, 16, 16), dtype)
    value = rng.standard_normal((2, 6, 150, 12)).astype(q.dtype)
    check(make(q, k, value, dropout_p=0.3, dropout_seed=5, precision=precision))


def test_split_products_are_close_but_not_the_same_and_only_where_they_are_asked_for():
    q, k, v = arrays(np.random.default_rng(0), (1, 2, 2, 300, 300, 64, 64))
    exact = run(make(q, k, v))[0]
    close = run(make(q, k, v, precision="high"))[0]
    assert 1e-7 < np.abs(close - exact).max() < 2e-5
    native.select_isa("avx512")
    exact = run(make(q, k, v))[0]
    np.testing.assert_array_equal(run(make(q, k, v, precision="high"))[0], exact)


@pytest.mark.parametrize("sizes", [(8, 550), (2, 2100)], ids=str)
@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_blocks_of_rows_take_turns_at_chunks_of_keys(dtype, precision, sizes):
    heads, queries = sizes
    shape = (1, heads, heads, queries, 1100, 256, 256)
    mask = regard.window(700, 300, align="lower_right")
    check(problem(np.random.default_rng(0), shape, dtype, precision=precision, mask=mask))


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_the_same_bits_for_any_number_of_threads(dtype, precision):
    rng = np.random.default_rng(0)
    openmp = ctypes.CDLL("libgomp.so.1")
    before, seen = openmp.omp_get_max_threads(), set()
    shape = (1, 8, 4, 223, 300, 64, 64)
    prob = problem(rng, shape, dtype, precision=precision, mask=regard.causal(200))
    try:
        for n in range(8):
            openmp.omp_set_num_threads(1 + n % 4)
            seen.add(b"".join(array.tobytes() for array in (*run(prob), run_alone(prob))))
    finally:
        openmp.omp_set_num_threads(before)
    assert len(seen) == 1


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize("queries", [3, 17, 109, 223])
def test_blocks_that_hidden_nan_spoils_are_done_again(dtype, precision, queries):
    rng = np.random.default_rng(1)
    q, k, v = arrays(rng, (2, 12, 2, queries, 150, 40, 24), dtype)
    keep = rng.random((2, 150)) < 0.8
    hidden = ~keep[:, None, :, None]
    bad = (np.where(hidden, np.full_like(a, x), a) for a, x in ((k, np.nan), (v, np.inf)))
    bad_k, bad_v = bad
    for extra in ({}, {"dropout_p": 0.2, "dropout_seed": 3}, options(rng, 12, 150)):
        extra |= {"mask": regard.keys(keep) & regard.causal(70), "precision": precision}
        check(make(q, bad_k, bad_v, **extra), make(q, k, v, **extra))


@pytest.mark.parametrize("size", [2.0**-13, 1.0, 65504.0])
def test_float16_of_any_size(size):
    """From subnormal halves, whose parts are no subnormals, to the largest."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.integers(-2047, 2048, (1, 2, n, 40)) / 2047 for n in (100, 90, 90))
    q, k, v = ((a * size).astype(np.float16) for a in (q, k, v))
    check(make(q, k, v, scale=0.5 / size**2))


def test_float32_of_any_size():
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 100, 90, 40, 40))
    for size in (1e-17, 1e17):
        check(make(q * size, k * size, v / size, scale=0.2 / size**2, precision="high"))
    # Lower parts are subnormal: what is left has the precision of bfloat16.
    tiny = np.float32(2.0**-115)
    y, _ = run(make(q, k, v * tiny, precision="high"))
    exact = truth(make(q, k, v * tiny))[0]
    assert 2**-16 < error(y, exact) / np.abs(exact).max() < 2**-8
    # The largest float32 has no bfloat16 above it.
    v[..., 3, :] = np.finfo(np.float32).max
    np.testing.assert_array_equal(run(make(q, k, v, precision="high"))[0], run(make(q, k, v))[0])


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_infinite_elements_arrive_as_they_are(dtype, precision):
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 223, 150, 40, 40), dtype)
    v[..., 3, 5], v[..., 4, 6] = np.inf, np.nan
    k[..., 7, :] = np.where(q[0, 0, 0] > 0, -np.inf, np.inf)
    y, lse = run(make(q, k, v, precision=precision))
    exact, total = truth(make(q, k, v))
    for output in (y, run_alone(make(q, k, v, precision=precision))):
        np.testing.assert_array_equal(np.isinf(output), np.isinf(exact))
        np.testing.assert_array_equal(np.isnan(output), np.isnan(exact))
    np.testing.assert_array_equal(np.isfinite(lse), np.isfinite(total))
    assert np.isfinite(lse[0, 0, 0])


@pytest.mark.parametrize("masked", [False, True])
def test_nan_that_is_seen_arrives(masked):
    """In queries, keys and biases, whose scores may be counted in whole steps."""
    q, k, v = arrays(np.random.default_rng(0), (1, 2, 2, 100, 90, 40, 40), "bfloat16")
    mask = regard.causal("lower_right") if masked else None
    for place in ("query", "key", "bias"):
        given = {"query": q.copy(), "key": k.copy(), "bias": np.zeros((100, 90), np.float32)}
        given[place][..., 57, 3] = np.nan
        if place != "bias":
            del given["bias"]
        prob = make(value=v, mask=mask, **given)
        exact = truth(prob)[0]
        assert np.isnan(exact).any() and error(run_alone(prob), exact) < 0.1


@pytest.mark.parametrize("far", [-300, -50, 70, 300])
@pytest.mark.parametrize("mask", [None, regard.causal(-20)])
def test_scores_far_from_0_are_weighed_on_the_matrix_unit(far, mask):
    """Blocks whose sums come out too small or too large are done again with pivots."""
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (1, 4, 2, 100, 150, 40, 24), "bfloat16")
    bias = (far + rng.standard_normal((100, 150))).astype(np.float32)
    prob = make(q, k, v, bias=bias, mask=mask)
    check(prob)
    output = run_alone(prob)
    native.select_isa("avx512")
    assert (output != run_alone(prob)).any()


def test_what_hidden_keys_hold_changes_no_bit():
    """Not even how large scores can be: hidden keys may lie in a strip of visible ones."""
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (1, 4, 2, 100, 150, 40, 24), "bfloat16")
    keep = rng.random((1, 150)) < 0.7
    mask = regard.keys(keep) & regard.causal(20)
    output = run_alone(make(q, k, v, mask=mask))
    for bad in (1e4, 1e30, np.nan):
        hidden = np.where(keep[:, None, :, None], k, np.full_like(k, bad))
        np.testing.assert_array_equal(run_alone(make(q, hidden, v, mask=mask)), output)


def test_scores_far_below_the_largest_weigh_nothing():
    """Weights below 2^-127 of the largest are 0, not the smallest that 16 bits can count."""
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 64, 96, 32, 32), "bfloat16")
    v[..., 40, :] = 1e38
    bias = np.zeros((64, 96), np.float32)
    for far in (-1e3, -1e6, -np.inf):
        bias[:, 40] = far
        assert np.abs(run_alone(make(q, k, v, bias=bias)).astype(float)).max() < 10
