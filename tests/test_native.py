"""The native core against the definition, on every instruction set of this machine."""

from __future__ import annotations

import ctypes
import platform

import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import (
    allowed,
    arrays,
    error,
    plain_error,
    plain_gradient_errors,
    problem,
    truth,
)
from regard.kernels import native, reference
from regard.problem import Problem, make

pytestmark = pytest.mark.skipif(not ISAS, reason="no native core is installed")

LENGTHS = [(1, 239), (3, 799), (127, 513), (113, 203), (128, 217), (108, 256), (256, 512)]
LENGTHS += [(1023, 1024)]
HEAD_SIZES = [1, 32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 256]
DTYPES = ["float32", "float64", "float16", "bfloat16"]

MASKS = {
    "none": lambda b, h, lq, lk: None,
    "causal": lambda b, h, lq, lk: regard.causal("lower_right"),
    "upper_left": lambda b, h, lq, lk: regard.causal("upper_left"),
    "window": lambda b, h, lq, lk: regard.window(17, 3, "lower_right"),
    "lengths": lambda b, h, lq, lk: regard.lengths(
        keys=np.linspace(0, lk, b).astype(int), queries=np.linspace(lq, lq // 2, b).astype(int)
    ),
    "prefix_or_causal": lambda b, h, lq, lk: regard.prefix(5) | regard.causal("upper_left"),
    "documents": lambda b, h, lq, lk: regard.documents(
        np.sort(np.arange(b * lq).reshape(b, lq) * 7 % 5), np.sort(np.arange(b * lk) % 5)[None, :lk]
    ),
    "interleaved": lambda b, h, lq, lk: regard.documents(
        np.arange(lq)[None] % 3, (np.arange(lk) * 6 // max(1, lk))[None] % 3
    ),
    "dense": lambda b, h, lq, lk: np.random.default_rng(7).random((b, h, lq, lk)) < 0.3,
    "dense_shared": lambda b, h, lq, lk: np.random.default_rng(7).random((h, 1, lk)) < 0.5,
    "dense_and_causal": lambda b, h, lq, lk: (
        (np.random.default_rng(7).random((lq, lk)) < 0.5) & regard.causal("upper_left")
    ),
}


def run(prob: Problem) -> tuple[np.ndarray, np.ndarray]:
    extent = prob.extent
    output = np.empty((*extent.shape[:-1], prob.value_size), prob.query.dtype)
    lse = np.empty(extent.shape[:-1], prob.accumulation_dtype)
    native.forward(prob, output, lse)
    return output, lse


def run_alone(prob: Problem) -> np.ndarray:
    """The output where nobody asks for log-sum-exps: its weights may be made in another way."""
    output = np.empty((*prob.extent.shape[:-1], prob.value_size), prob.query.dtype)
    native.forward(prob, output, None)
    return output


def check(prob: Problem) -> None:
    output, lse = run(prob)
    y, total = truth(prob)
    limit = allowed(plain_error(prob, y), y, prob.dtype)
    assert error(output, y) <= limit
    assert error(run_alone(prob), y) <= limit
    assert error(lse, total) <= (1e-12 if prob.dtype == "float64" else 2e-5) * max(
        1, np.abs(total[np.isfinite(total)]).max(initial=0)
    )


@pytest.mark.parametrize("lengths", LENGTHS + [(b, a) for a, b in LENGTHS], ids=str)
def test_ragged_lengths(isa, lengths):
    for mask in (None, regard.causal("lower_right")):
        check(problem(np.random.default_rng(0), (1, 2, 1, *lengths, 40, 24), mask=mask))


@pytest.mark.parametrize("size", HEAD_SIZES)
def test_head_sizes(isa, size):
    rng = np.random.default_rng(size)
    check(problem(rng, (1, 2, 2, 70, 131, size, size)))
    check(problem(rng, (1, 2, 2, 70, 131, size, HEAD_SIZES[-1 - HEAD_SIZES.index(size)])))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(isa, dtype, mask):
    for lq, lk in ((150, 150), (67, 201), (5, 300)):
        made = MASKS[mask](3, 4, lq, lk)
        check(problem(np.random.default_rng(1), (3, 4, 2, lq, lk, 32, 32), dtype, mask=made))


@pytest.mark.parametrize("dtype", DTYPES)
def test_softcap_sinks_and_bias(isa, dtype):
    rng = np.random.default_rng(2)
    kind = "float64" if dtype == "float64" else "float32"
    for shape in ((2, 4, 90, 130), (1, 4, 90, 130), (4, 1, 130), (90, 1), (2, 1, 1, 130)):
        options = {
            "bias": rng.standard_normal(shape).astype(kind),
            "sinks": rng.standard_normal(4).astype(kind),
            "softcap": 3.0,
            "scale": 0.3,
        }
        check(problem(rng, (2, 4, 2, 90, 130, 24, 16), dtype, **options))
        check(problem(rng, (2, 4, 2, 90, 130, 24, 16), dtype, **options, mask=regard.prefix(77)))


def test_a_bias_of_the_arrays_own_narrow_type(isa):
    rng = np.random.default_rng(3)
    for dtype in ("float16", "bfloat16"):
        q, k, v = arrays(rng, (1, 2, 2, 33, 65, 16, 16), dtype)
        check(make(q, k, v, bias=rng.standard_normal((33, 65)).astype(q.dtype)))


def test_values_may_have_as_many_heads_as_queries(isa):
    rng = np.random.default_rng(4)
    q, k, _ = arrays(rng, (2, 6, 2, 40, 50, 16, 16))
    value = rng.standard_normal((2, 6, 50, 12)).astype(np.float32)
    check(make(q, k, value))


def test_strided_arrays_are_read_in_place_and_nothing_beyond_them(isa):
    rng = np.random.default_rng(5)
    packed = rng.standard_normal((2, 37, 3, 4, 24)).astype(np.float32)
    q, k, v = (packed[:, :, n, :, 3:19].swapaxes(1, 2) for n in range(3))
    check(make(q, k, v, mask=regard.causal()))
    check(make(q[..., ::-1, :], k[..., ::2, :], v[..., ::2, :]))
    check(make(q[..., ::2], k[..., ::2], v[..., ::2]))


def test_layout_blhd(isa):
    rng = np.random.default_rng(6)
    q, k, v = arrays(rng, (2, 4, 2, 19, 23, 16, 8))
    swapped = (a.swapaxes(1, 2).copy() for a in (q, k, v))
    y = regard.attention(*swapped, layout="BLHD")
    assert y.shape == (2, 19, 4, 8)
    np.testing.assert_array_equal(y.swapaxes(1, 2), regard.attention(q, k, v))


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
def test_empty_sequences(isa, lengths):
    y, lse = run(problem(np.random.default_rng(0), (2, 2, 1, *lengths, 8, 8)))
    assert y.shape == (2, 2, lengths[0], 8)
    assert not y.any() and np.all(lse == -np.inf)


def test_the_same_bits_for_any_number_of_threads_and_every_time(isa):
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    prob = problem(np.random.default_rng(0), (1, 2, 1, 300, 700, 64, 64), mask=regard.causal(400))
    dy = np.random.default_rng(1).standard_normal((1, 2, 300, 64)).astype(np.float32)
    seen = set()
    try:
        for n in range(50):
            openmp.omp_set_num_threads(1 + n % 3)
            y, lse = run(prob)
            gradients = backward(prob, y, lse, dy) if n < 12 else {}
            seen.add(y.tobytes() + lse.tobytes())
            if gradients:
                seen.add(b"".join(g.tobytes() for g in gradients.values()))
    finally:
        openmp.omp_set_num_threads(before)
    assert len(seen) == 2


def test_hidden_nan_never_arrives(isa):
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (2, 2, 2, 70, 70, 16, 16))
    keep = np.ones((2, 70), bool)
    keep[0, [3, 50]] = keep[1, 66:] = False
    masks = [
        (regard.keys(keep), keep),
        (regard.lengths([40, 70]), np.arange(70) < np.array([[40], [70]])),
        (keep[:, None, None, :], keep),
    ]
    for mask, clean in masks:
        spoiled = [
            np.where(clean[:, None, :, None], a, bad) for a, bad in ((k, np.nan), (v, np.inf))
        ]
        y, lse = run(make(q, *spoiled, mask=mask))
        expected, total = run(make(q, k, v, mask=mask))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lse, total, rtol=1e-6)


def test_the_future_is_never_read_under_causal(isa):
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 90, 90, 16, 16))
    expected = run(make(q, k, v, mask=regard.causal()))[0]
    for n in (1, 30, 64, 89):
        bad_k, bad_v = k.copy(), v.copy()
        bad_k[..., n:, :] = bad_v[..., n:, :] = np.nan
        y = run(make(q, bad_k, bad_v, mask=regard.causal()))[0]
        np.testing.assert_allclose(y[..., :n, :], expected[..., :n, :], rtol=1e-5, atol=1e-6)
        assert np.isnan(y[..., n:, :]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_keys_change_no_bit(isa, dtype):
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (1, 2, 1, 100, 1200, 64, 64), dtype)
    for mask in (regard.causal(300), regard.prefix(500), regard.window(90, 0, 100)):
        expected = run(make(q, k, v, mask=mask))
        loud_k, loud_v = k.copy(), v.copy()
        loud_k[..., 500:, :] *= 1000
        loud_v[..., 500:, :] *= 1000
        found = run(make(q, loud_k, loud_v, mask=mask))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_visible_nan_arrives_in_its_own_rows_only(isa):
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 40, 40, 16, 16))
    q[0, 0, 7] = np.nan
    y = run(make(q, k, v))[0]
    assert np.isnan(y[0, 0, 7]).all()
    assert np.isfinite(np.delete(y, 7, axis=2)).all()


def backward(prob: Problem, y, lse, dy, d_lse=None) -> dict[str, np.ndarray]:
    gradients = {
        "d_query": np.full_like(prob.query, 7),
        "d_key": np.full(prob.key.shape, 7, prob.key.dtype),
        "d_value": np.full(prob.value.shape, 7, prob.value.dtype),
    }
    if prob.bias is not None:
        gradients["d_bias"] = np.full(prob.bias.shape, 7, lse.dtype)
    if prob.sinks is not None:
        gradients["d_sinks"] = np.full(prob.sinks.shape, 7, lse.dtype)
    native.backward(prob, y, lse, dy, d_lse, **gradients)
    return gradients


def check_backward(prob: Problem, seed: int = 0) -> None:
    y, lse = run(prob)
    dy = np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype)
    expected = reference.backward(prob, dy)
    found = backward(prob, y, lse, dy)
    plain = plain_gradient_errors(prob, dy, expected)
    for name, array in found.items():
        name = name.removeprefix("d_")
        exact = getattr(expected, name)
        assert error(array, exact) <= allowed(plain[name], exact, prob.dtype, 3), name


@pytest.mark.parametrize("lengths", LENGTHS + [(b, a) for a, b in LENGTHS], ids=str)
def test_backward_of_ragged_lengths(isa, lengths):
    for mask in (None, regard.causal("lower_right")):
        check_backward(problem(np.random.default_rng(0), (1, 2, 1, *lengths, 40, 24), mask=mask))


@pytest.mark.parametrize("size", HEAD_SIZES)
def test_backward_of_head_sizes(isa, size):
    rng = np.random.default_rng(size)
    other = HEAD_SIZES[-1 - HEAD_SIZES.index(size)]
    check_backward(problem(rng, (1, 2, 2, 70, 131, size, other)))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_of_masks(isa, dtype, mask):
    for lq, lk in ((150, 150), (67, 201)):
        made = MASKS[mask](3, 4, lq, lk)
        check_backward(
            problem(np.random.default_rng(1), (3, 4, 2, lq, lk, 32, 24), dtype, mask=made)
        )


@pytest.mark.parametrize("shape", [(2, 4, 90, 130), (1, 4, 90, 130), (4, 1, 130), (90, 1), (1,)])
def test_backward_of_bias_sinks_softcap_and_dropout(isa, shape):
    rng = np.random.default_rng(2)
    for dtype in ("float32", "float64"):
        options = {
            "bias": rng.standard_normal(shape).astype(dtype),
            "sinks": rng.standard_normal(4).astype(dtype),
            "softcap": 3.0,
            "dropout_p": 0.4,
            "dropout_seed": 11,
            "mask": regard.window(60, 20, 10),
        }
        check_backward(problem(rng, (2, 4, 2, 90, 130, 24, 16), dtype, **options))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_the_log_sum_exp(isa, dtype):
    prob = problem(np.random.default_rng(3), (2, 2, 1, 40, 60, 8, 8), dtype, mask=regard.prefix(50))
    y, lse = run(prob)
    dy, d_lse = (np.random.default_rng(4).standard_normal(a.shape).astype(dtype) for a in (y, lse))
    expected = reference.backward(prob, dy, d_lse)
    for name, array in backward(prob, y, lse, dy, d_lse).items():
        exact = getattr(expected, name.removeprefix("d_"))
        assert error(array, exact) <= allowed(0, exact, dtype) * (1 if dtype == "float32" else 10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_a_single_key_the_output_is_its_value_and_the_scores_have_no_gradient(isa, dtype):
    prob = problem(np.random.default_rng(5), (1, 2, 1, 64, 1, 64, 64), dtype)
    y, lse = run(prob)
    expected = np.broadcast_to(prob.value, y.shape).astype(float)
    np.testing.assert_allclose(y.astype(float), expected, rtol=3e-7)
    dy = np.random.default_rng(6).standard_normal(y.shape).astype(y.dtype)
    found = backward(prob, y, lse, dy)
    for name in ("d_query", "d_key"):
        assert np.abs(found[name].astype(float)).max() < 2e-4, name


def test_hidden_nan_never_arrives_in_a_gradient(isa):
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (2, 2, 1, 70, 70, 16, 16))
    inside = np.arange(70) < np.array([[40], [70]])
    rows = inside[:, None, :, None]
    mask = regard.lengths(keys=[40, 70], queries=[40, 70]) & regard.causal()
    dy = rng.standard_normal(q.shape).astype(np.float32)
    clean = make(q, k, v, mask=mask)
    expected = backward(clean, *run(clean), np.where(rows, dy, 0))
    spoiled = make(*(np.where(rows, a, np.nan) for a in (q, k, v)), mask=mask)
    found = backward(spoiled, *run(spoiled), np.where(rows, dy, np.nan))
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_nan_in_the_future_reaches_no_gradient_of_past_queries(isa):
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 80, 80, 16, 16))
    prob = make(q, k, v, mask=regard.causal())
    dy = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)
    expected = backward(prob, *run(prob), dy)
    for array in (k, v):
        array[..., 60:, :] = np.nan
    found = backward(prob, *run(prob), dy)
    np.testing.assert_allclose(
        found["d_query"][..., :60, :], expected["d_query"][..., :60, :], rtol=1e-4, atol=1e-5
    )
    assert np.isnan(found["d_query"][..., 60:, :]).all()


def test_dropout_drops_the_same_weights_as_the_definition(isa):
    rng = np.random.default_rng(0)
    prob = problem(rng, (2, 2, 1, 60, 90, 8, 8), dropout_p=0.25, dropout_seed=2**40 + 5)
    y, _ = run(prob)
    assert error(y, truth(prob)[0]) < 1e-5


def test_scores_are_the_definitions(isa):
    rng = np.random.default_rng(0)
    bias = rng.standard_normal((4, 50, 1)).astype(np.float32)
    prob = problem(
        rng, (2, 4, 2, 50, 80, 24, 8), bias=bias, softcap=2.0, mask=regard.causal("lower_right")
    )
    expected = reference.scores(prob)
    found = native.scores(prob, 1, 3, slice(7, 41), slice(5, 77))
    assert error(found, expected[1, 3, 7:41, 5:77]) < 1e-5


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(regard.errors.BackendError, match=r"Wanted: one of .*baseline"):
        native.select_isa("sse9")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 7), (1, 3, 1, 5, 7), (3, 1, 1, 7), (5, 7)])
def test_dense_masks_and_biases_of_several_batch_dimensions(shape):
    rng = np.random.default_rng(0)
    q, k, v = (a.reshape(2, 3, *a.shape[1:]) for a in arrays(rng, (6, 4, 2, 5, 7, 8, 6), "float64"))
    options = {"mask": rng.random(shape) < 0.6, "bias": rng.standard_normal(shape)}
    y = regard.attention(q, k, v, **options, backend="native")
    expected = regard.attention(q, k, v, **options, backend="reference")
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_arrays_that_lie_oddly_in_memory():
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, (2, 4, 2, 5, 7, 8, 6))
    bias = np.eye(5, 7, dtype=np.float32)
    expected = regard.attention(q, k, v, bias=bias)
    packed = np.zeros(q.shape, [("flag", "u1"), ("x", "f4")])
    packed["x"] = q
    rows = np.zeros(q.shape[:-1], [("flag", "u1"), ("x", "f4", (8,))])
    rows["x"] = q
    for odd in (packed["x"], rows["x"]):
        np.testing.assert_array_equal(regard.attention(odd, k, v, bias=bias), expected)
    np.testing.assert_array_equal(regard.attention(q, k, v, bias=bias.view(np.matrix)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores(isa, dtype):
    rng = np.random.default_rng(0)
    for scale in (1.5, 6.0, -6.0):
        options = {"scale": scale, "mask": regard.window(150, 40, "lower_right")}
        check(problem(rng, (2, 4, 2, 150, 333, 40, 24), dtype, **options))
        check(problem(rng, (1, 2, 2, 40, 200, 64, 64), dtype, scale=scale, softcap=50.0))


def test_hidden_nan_never_arrives_in_bfloat16(isa):
    q, k, v = arrays(np.random.default_rng(0), (2, 4, 2, 70, 170, 32, 16), "bfloat16")
    mask = regard.lengths([41, 170]) & regard.causal("lower_right")
    clean = (np.arange(170) < np.array([[41], [170]]))[:, None, :, None]
    spoiled = (np.where(clean, a, np.array(bad, a.dtype)) for a, bad in ((k, np.nan), (v, np.inf)))
    y, lse = run(make(q, *spoiled, mask=mask))
    expected, total = run(make(q, k, v, mask=mask))
    assert error(y, expected.astype(float)) < 1e-2
    np.testing.assert_allclose(lse, total, rtol=1e-5)


def test_results_below_the_smallest_normal_number_are_0_within_a_call_alone(isa):
    tiny = np.full((1, 1, 1, 8), 1e-38, np.float32)
    one = np.ones_like(tiny)
    halves = np.concatenate([tiny, np.zeros_like(tiny)], axis=2)  # the mean is subnormal
    mean = regard.attention(one, np.ones((1, 1, 2, 8), np.float32), halves)
    if platform.machine() in ("x86_64", "AMD64"):
        assert not mean.any()
    assert (tiny * np.float32(0.5) > 0).all()  # NumPy's arithmetic is as it was
