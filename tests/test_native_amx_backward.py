"""Gradients on the matrix unit of AMX, of elements in one, two and three parts."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import allowed, arrays, error, plain_gradient_errors, problem
from regard.kernels import native, reference
from regard.problem import Problem, make
from test_native import HEAD_SIZES, MASKS, backward, run

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no AMX")

SPLIT = [("float16", "highest"), ("float32", "high"), ("float32", "highest")]
KINDS = [("bfloat16", "highest"), *SPLIT]
kinds = pytest.mark.parametrize(("dtype", "precision"), KINDS)
split = pytest.mark.parametrize(("dtype", "precision"), SPLIT)
# Little enough of these is padding that three parts pay.
LENGTHS = [(128, 217), (150, 250), (190, 155), (509, 700)]


@pytest.fixture(autouse=True)
def amx():
    native.select_isa("amx")


def d_output(prob: Problem) -> np.ndarray:
    shape = (*prob.extent.shape[:-1], prob.value_size)
    return np.random.default_rng(9).standard_normal(shape).astype(prob.query.dtype)


def gradients(prob: Problem, isa: str = "amx") -> dict[str, np.ndarray]:
    """Of the output that AMX computes."""
    y, lse = run(prob)
    native.select_isa(isa)
    found = backward(prob, y, lse, d_output(prob))
    native.select_isa("amx")
    return found


def check(prob: Problem) -> None:
    expected = reference.backward(prob, d_output(prob))
    plain = plain_gradient_errors(prob, d_output(prob), expected)
    factor = 3 * 2**8 if prob.precision == "high" else 3
    for name, array in gradients(prob).items():
        exact = getattr(expected, name.removeprefix("d_"))
        limit = allowed(plain[name.removeprefix("d_")], exact, prob.dtype, factor)
        assert error(array, exact) <= limit, name


@split
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_ragged_lengths(dtype, precision, lengths):
    for mask in (None, regard.causal("lower_right")):
        shape = (1, 2, 1, *lengths, 40, 24)
        check(problem(np.random.default_rng(0), shape, dtype, precision=precision, mask=mask))


@split
@pytest.mark.parametrize("size", HEAD_SIZES)
def test_head_sizes(dtype, precision, size):
    other = HEAD_SIZES[-1 - HEAD_SIZES.index(size)]
    shape = (1, 2, 2, 150, 155, size, other)
    check(problem(np.random.default_rng(size), shape, dtype, precision=precision))


@split
@pytest.mark.parametrize("mask", MASKS)
def test_masks(dtype, precision, mask):
    rng, made = np.random.default_rng(1), MASKS[mask](3, 4, 150, 250)
    shape = (3, 4, 2, 150, 250, 32, 24)
    check(problem(rng, shape, dtype, precision=precision, mask=made))


@split
def test_bias_sinks_softcap_and_dropout(dtype, precision):
    rng = np.random.default_rng(2)
    options = {
        "bias": rng.standard_normal((4, 150, 250)).astype(np.float32),
        "sinks": rng.standard_normal(4).astype(np.float32),
        "softcap": 3.0,
        "dropout_p": 0.4,
        "dropout_seed": 11,
        "mask": regard.window(90, 40, 10),
    }
    check(problem(rng, (2, 4, 2, 150, 250, 24, 16), dtype, precision=precision, **options))


@split
def test_values_of_each_head(dtype, precision):
    rng = np.random.default_rng(4)
    q, k, _ = arrays(rng, (2, 6, 2, 150, 155, 16, 16), dtype)
    value = rng.standard_normal((2, 6, 155, 12)).astype(q.dtype)
    check(make(q, k, value, precision=precision, mask=regard.causal(30)))


@kinds
def test_the_same_bits_for_any_number_of_threads(dtype, precision):
    openmp = ctypes.CDLL("libgomp.so.1")
    before, seen = openmp.omp_get_max_threads(), set()
    shape = (1, 4, 2, 1100, 300, 64, 64)
    mask = regard.causal(200)
    prob = problem(np.random.default_rng(0), shape, dtype, precision=precision, mask=mask)
    try:
        for n in range(6):
            openmp.omp_set_num_threads(1 + n % 3)
            seen.add(b"".join(array.tobytes() for array in gradients(prob).values()))
    finally:
        openmp.omp_set_num_threads(before)
    assert len(seen) == 1


@kinds
def test_each_gradient_is_the_same_when_it_alone_is_wanted(dtype, precision):
    prob = problem(
        np.random.default_rng(5), (1, 2, 1, 150, 155, 40, 24), dtype, precision=precision
    )
    y, lse = run(prob)
    for name, array in gradients(prob).items():
        alone = np.full_like(array, 7)
        native.backward(prob, y, lse, d_output(prob), None, **{name: alone})
        np.testing.assert_array_equal(alone, array, err_msg=name)


def test_three_parts_are_no_less_exact_than_float32():
    prob = problem(np.random.default_rng(6), (1, 2, 2, 512, 512, 64, 64))
    expected = reference.backward(prob, d_output(prob))
    split, whole = gradients(prob), gradients(prob, "avx512")
    for name, array in split.items():
        exact = getattr(expected, name.removeprefix("d_"))
        assert np.abs(array - whole[name]).max() > 0
        assert np.square(array - exact).mean() <= np.square(whole[name] - exact).mean(), name


@split
def test_hidden_nan_never_arrives(dtype, precision):
    q, k, v = arrays(np.random.default_rng(0), (2, 2, 2, 160, 160, 40, 24), dtype)
    rows = (np.arange(160) < np.array([[100], [160]]))[:, None, :, None]
    mask = regard.lengths(keys=[100, 160], queries=[100, 160]) & regard.causal()
    expected = gradients(make(q, k, v, mask=mask, precision=precision))
    spoilt = (np.where(rows, a, np.full_like(a, x)) for a, x in ((k, np.nan), (v, np.inf)))
    found = gradients(make(q, *spoilt, mask=mask, precision=precision))
    near = {"rtol": 2e-2, "atol": 1e-2} if dtype == "float16" else {"rtol": 1e-3, "atol": 1e-4}
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, **near, err_msg=name)


@split
@pytest.mark.parametrize("masked", [False, True])
def test_what_does_not_add_up_from_parts_is_left_to_avx512(dtype, precision, masked):
    mask = regard.causal(20) if masked else None
    for spoil in ("infinite", "nan", "largest")[: 2 if dtype == "float16" else 3]:
        q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 160, 160, 40, 40), dtype)
        if spoil == "infinite":
            k[..., 7, :] = np.where(q[0, 0, 0] > 0, -np.inf, np.inf)
        elif spoil == "nan":
            v[..., 4, 6] = np.frombuffer(b"\xff" * v.itemsize, v.dtype)[0]
        else:
            v[..., 3, :] = np.finfo(v.dtype).max
        prob = make(q, k, v, mask=mask, precision=precision)
        found = gradients(prob)
        for name, array in gradients(prob, "avx512").items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{spoil} {name}")


def test_float16_of_any_size():
    rng = np.random.default_rng(0)
    for size in (2.0**-13, 1.0, 200.0):
        q, k, v = (rng.integers(-2047, 2048, (1, 2, 150, 40)) / 2047 for _ in range(3))
        q, k, v = ((a * size).astype(np.float16) for a in (q, k, v))
        check(make(q, k, v, scale=0.5 / size**2))


def test_float32_of_any_size():
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 160, 160, 40, 40))
    for size in (1e-12, 1e12):
        check(make(q * size, k * size, v / size, scale=0.2 / size**2))
