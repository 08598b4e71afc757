"""Every read-out of the native core is what its definition says, on every instruction set."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import pytest

import regard
from conftest import ISAS
from problems import arrays, problem
from regard.kernels import native, reference
from regard.problem import Problem, make
from regard.reading import DEFAULT_READ_OUTS
from regard.readouts import KINDS, Edges, Gathering, TopK, TopQueries
from regard.readouts.base import Dense
from test_native import DTYPES, MASKS, run

pytestmark = pytest.mark.skipif(not ISAS, reason="no native core is installed")


def requests(lq: int, lk: int) -> dict[str, dict[str, Any]]:
    """Every read-out, with arguments that make it touch all that it can."""
    return {
        **{name: {} for name in ("max_score", "max_weight", "entropy", "effective_keys")},
        "distance": {"offset": 3},
        "distance_bins": {"offset": -5},
        "top_k": {"k": 5},
        "offsets": {"offsets": [-70, -1, 0, 2, 150]},
        "mass": {"keys": np.arange(lk) * 7 % 5 - 1},
        "threshold": {"least": 0.03},
        "received": {"reduce": "mean", "groups": np.arange(lq) // 50 % 3 - 1},
        "top_queries": {"k": 4},
        "pooled": {"shape": (11, 7), "reduce": "both"},
        "similarity": {},
    }


def lse_of(prob: Problem) -> np.ndarray:
    lse = np.empty(prob.extent.shape[:-1], prob.accumulation_dtype)
    native.forward(prob.replace(value=None), None, lse)
    return lse.reshape(prob.extent.flat_batch, prob.extent.heads, prob.extent.queries)


def gather(prob: Problem, wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    gathering = Gathering(prob, "native", wanted)
    lse = lse_of(prob)
    gathering.sweep(lse)
    return gathering.results(lse)


def close(found, truth, name: str) -> None:
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-6, err_msg=name)


def check(prob: Problem, wanted: dict[str, dict[str, Any]]) -> None:
    """Against the definition on dense matrices in float64."""
    Case(prob, wanted).judge(gather(prob, wanted))


class Case:
    """A problem and its read-outs by definition: slow, so that instruction sets share them."""

    def __init__(self, prob: Problem, wanted: dict[str, dict[str, Any]]) -> None:
        self.prob, self.wanted = prob, wanted
        self.dense = Dense(reference.scores(prob), reference.weights(prob)[0])
        self.truth = {
            name: KINDS[name](prob.extent, prob.accumulation_dtype, **keywords).of(self.dense)
            for name, keywords in wanted.items()
        }

    def judge(self, found: dict[str, Any]) -> None:
        assert found.keys() == self.truth.keys()
        for name, truth in self.truth.items():
            check_one(name, found[name], truth, self.dense)


@functools.cache
def masked(dtype: str, mask: str, lengths: tuple[int, int]) -> Case:
    """One mask, all read-outs."""
    made = MASKS[mask](2, 4, *lengths)
    shape = (2, 4, 2, *lengths, 32, 24)
    prob = problem(np.random.default_rng(1), shape, dtype, mask=made)
    return Case(prob, requests(*lengths))


def check_one(name: str, found: Any, truth: Any, dense: Dense) -> None:
    if isinstance(found, (TopK, TopQueries)):
        # Scores that nearly tie may change places, so that keys are judged by their weights.
        weights = dense.weights if isinstance(found, TopK) else dense.weights.swapaxes(-1, -2)
        assert np.array_equal(found[1] == -1, truth[1] == -1)
        padded = np.concatenate([weights, np.zeros((*weights.shape[:-1], 1))], axis=-1)
        close(np.take_along_axis(padded, found[1], -1), truth.weights, name)
        close(found.weights, truth.weights, name)
    elif isinstance(found, Edges):
        check_edges(found, truth, dense)
    elif isinstance(found, tuple):
        for one, other in zip(found, truth, strict=True):
            close(one, other, name)
    else:
        assert found.shape == truth.shape, name
        close(found, truth, name)


def check_edges(found: Edges, truth: Edges, dense: Dense) -> None:
    pairs, expected = (list(zip(*(a.tolist() for a in e[:4]), strict=True)) for e in (found, truth))
    assert pairs == sorted(set(pairs))
    close(found.weight, dense.weights[tuple(np.array(pairs, int).reshape(-1, 4).T)], "threshold")
    for b, h, i, j in set(pairs) ^ set(expected):  # only those at the border
        close(dense.weights[b, h, i, j], 0.03, "threshold")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_read_out_with_every_mask(isa, dtype, mask):
    for lengths in ((67, 301), (5, 150)):
        case = masked(dtype, mask, lengths)
        case.judge(gather(case.prob, case.wanted))


SIZES = [(1, 1), (1, 700), (15, 16), (17, 97), (64, 96), (65, 95), (129, 200), (200, 3), (70, 1030)]


@pytest.mark.parametrize("lengths", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_read_out_of_ragged_lengths(isa, dtype, lengths):
    rng = np.random.default_rng(2)
    for mask in (None, regard.causal("lower_right")):
        check(problem(rng, (1, 2, 1, *lengths, 40, 8), dtype, mask=mask), requests(*lengths))


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
def test_every_read_out_of_nothing(isa, lengths):
    wanted = requests(*lengths)
    prob = problem(np.random.default_rng(0), (2, 2, 1, *lengths, 8, 8))
    dense = Dense(reference.scores(prob), reference.weights(prob)[0])
    for name, found in gather(prob, wanted).items():
        truth = KINDS[name](prob.extent, "float32", **wanted[name]).of(dense)
        parts = zip(found, truth, strict=True) if isinstance(found, tuple) else [(found, truth)]
        for one, other in parts:
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_read_out_with_softcap_sinks_and_bias(isa, dtype):
    rng = np.random.default_rng(3)
    kind = "float64" if dtype == "float64" else "float32"
    for shape in ((2, 4, 90, 130), (4, 1, 130)):
        bias = rng.standard_normal(shape).astype(kind)
        bias[..., 3:20] = -np.inf  # hides, as a mask does
        sinks = rng.standard_normal(4).astype(kind)
        options = {"bias": bias, "sinks": sinks, "softcap": 3.0, "scale": -0.3}
        check(problem(rng, (2, 4, 2, 90, 130, 24, 8), dtype, **options), requests(90, 130))


@pytest.mark.parametrize("scale", [-1.5, 0.0, 1.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_read_out_of_scaled_scores(isa, dtype, scale):
    prob = problem(np.random.default_rng(4), (1, 2, 2, 70, 130, 16, 8), dtype, scale=scale)
    check(prob, requests(70, 130))


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("queries", [None, slice(-40, None), [0, 3, 77, -1], "groups"])
def test_received_from_chosen_queries(isa, reduce, queries):
    mask = regard.window(30, 8, "lower_right")
    prob = problem(np.random.default_rng(5), (2, 4, 2, 150, 210, 16, 8), mask=mask)
    groups = np.random.default_rng(6).integers(-1, 9, 150)
    chosen = {"groups": groups} if isinstance(queries, str) else {"queries": queries}
    check(prob, {"received": {"reduce": reduce, **chosen}})


@pytest.mark.parametrize("shape", [(1, 1), (150, 210), (64, 64), (149, 3), (2, 209), (900, 900)])
def test_pooled_into_any_shape(isa, shape):
    prob = problem(np.random.default_rng(7), (1, 2, 2, 150, 210, 16, 8), mask=regard.causal(60))
    check(prob, {"pooled": {"shape": shape, "reduce": "both"}})
    check(prob, {"pooled": {"shape": shape, "reduce": "max"}})


@pytest.mark.parametrize("offset", [-1000, -64, 0, 64, 5000])
def test_distances_from_any_offset(isa, offset):
    prob = problem(np.random.default_rng(8), (1, 2, 2, 150, 210, 16, 8))
    check(prob, {"distance": {"offset": offset}, "distance_bins": {"offset": offset}})


def test_all_keys_and_all_queries_in_order(isa):
    prob = problem(np.random.default_rng(9), (1, 2, 2, 40, 110, 16, 8), mask=regard.causal(60))
    check(prob, {"top_k": {"k": 130}, "top_queries": {"k": 50}})
    weights, keys = gather(prob, {"top_k": {"k": 130}})["top_k"]
    assert (np.diff(weights) <= 0).all()
    assert np.array_equal(np.sort(keys[0, 0, 39]), [*[-1] * 30, *range(100)])


def test_ties_go_to_the_first(isa):
    q, k, v = (np.zeros((1, 1, n, 4), np.float32) for n in (70, 150, 150))
    found = gather(make(q, k, v), {"top_k": {"k": 9}, "top_queries": {"k": 9}})
    assert (found["top_k"].keys == np.arange(9)).all()
    assert (found["top_queries"].queries == np.arange(9)).all()


def test_weights_too_small_for_a_float_keep_their_order(isa):
    q, k = np.ones((1, 1, 1, 1), np.float32), np.zeros((1, 1, 200, 1), np.float32)
    k[0, 0, :, 0] = -300.0 - np.arange(200)
    k[0, 0, 150] = 0
    found = gather(make(q, k, k, scale=1.0), {"top_k": {"k": 3}, "entropy": {}})
    assert found["top_k"].keys[0, 0, 0].tolist() == [150, 0, 1]
    assert found["entropy"][0, 0, 0] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_nan_never_arrives(isa, dtype):
    q, k, v = arrays(np.random.default_rng(0), (2, 4, 2, 70, 170, 32, 16), dtype)
    mask = regard.lengths([41, 170]) & regard.causal("lower_right")
    clean = (np.arange(170) < np.array([[41], [170]]))[:, None, :, None]
    spoiled = np.where(clean, k, np.array(np.nan, k.dtype))
    wanted = requests(70, 170)
    expected, found = (gather(make(q, a, v, mask=mask), wanted) for a in (k, spoiled))
    for name in wanted:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_for_any_number_of_threads(isa, dtype):
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    prob = problem(
        np.random.default_rng(0), (1, 3, 1, 500, 600, 32, 8), dtype, mask=regard.causal(60)
    )
    seen = set()
    try:
        for n in range(12):
            openmp.omp_set_num_threads(1 + n % 4)
            found = gather(prob, requests(500, 600)).values()
            flat = (part for one in found for part in (one if isinstance(one, tuple) else (one,)))
            seen.add(b"".join(np.ascontiguousarray(part).tobytes() for part in flat))
    finally:
        openmp.omp_set_num_threads(before)
    assert len(seen) == 1


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_gives_the_bits_of_attention(isa, dtype, mask):
    for lengths in ((67, 301), (5, 150), (1, 1200)):
        case = masked(dtype, mask, lengths)
        gathering = Gathering(case.prob, "native", case.wanted)
        y, lse = (np.full_like(a, 7) for a in run(case.prob))
        native.read_out(case.prob, y, lse, gathering.fields)
        alone = np.full_like(y, 7)
        native.forward(case.prob, alone, None)
        np.testing.assert_array_equal(y, alone)
        np.testing.assert_array_equal(lse, run(case.prob)[1])
        case.judge(gathering.results(lse))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sweep_that_has_no_lse_makes_the_bits_of_the_forward(isa, dtype, mask):
    for lengths in ((67, 301), (5, 150), (1, 1200)):
        case = masked(dtype, mask, lengths)
        gathering = Gathering(case.prob, "native", case.wanted)
        lse = gathering.sweep(None)
        np.testing.assert_array_equal(lse, lse_of(case.prob))
        case.judge(gathering.results(lse))


def test_a_sweep_of_nothing_leaves_the_lse_unknown():
    prob = masked("float32", "none", (5, 150)).prob
    assert Gathering(prob, "native", {}).sweep(None) is None
    assert Gathering(prob, "reference", {"entropy": {}}).sweep(None) is None


def test_attend_and_hidden_nan(isa):
    q, k, v = arrays(np.random.default_rng(0), (1, 2, 2, 150, 170, 16, 16))
    mask = regard.causal(0)
    k[..., 100:, :] = v[..., 100:, :] = np.nan
    prob, wanted = make(q, k, v, mask=mask), requests(150, 170)
    gathering = Gathering(prob, "native", wanted)
    y, lse = (np.empty_like(a) for a in run(prob))
    native.read_out(prob, y, lse, gathering.fields)
    np.testing.assert_array_equal(y, run(prob)[0])
    clean = make(q[..., :100, :], k, v, mask=mask)
    dense = Dense(reference.scores(clean), reference.weights(clean)[0])
    for name in ("max_weight", "entropy", "effective_keys"):
        truth = KINDS[name](clean.extent, "float32").of(dense)
        close(gathering.results(lse)[name][..., :100], truth, name)


def test_what_is_read_together_is_what_is_read_alone():
    q, k, _ = arrays(np.random.default_rng(1), (2, 4, 2, 37, 53, 16, 16))
    w = regard.weights(q, k, mask=regard.causal("lower_right"))
    seen = w.read(read_outs="default", similarity=True, top_queries=3, lse=False)
    assert vars(seen).keys() == {*DEFAULT_READ_OUTS, "similarity", "top_queries"} - {"lse"}
    np.testing.assert_array_equal(seen.entropy, w.entropy())
    np.testing.assert_array_equal(seen.top_queries.queries, w.top_queries(3).queries)
    np.testing.assert_array_equal(seen.similarity, w.similarity())
    by_definition = regard.weights(q, k, mask=regard.causal("lower_right"), backend="reference")
    close(seen.similarity, by_definition.similarity(), "similarity")
    close(
        w.read(received={"groups": np.arange(37) % 2}).received,
        by_definition.received(groups=np.arange(37) % 2),
        "received",
    )
