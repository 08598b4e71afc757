"""The operator applies itself, indexes, and reads out exactly what its dense matrix says."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
import types

import numpy as np
import pytest
import torch

import regard
from problems import arrays
from regard.errors import ArrayTypeError, DtypeError, OptionError, ShapeError, StaleOperator
from regard.kernels import reference
from regard.problem import make

RNG = np.random.default_rng(0)
CASES = {
    "plain": {},
    "causal": {"mask": regard.causal("lower_right")},
    "window": {"mask": regard.window(9, 2, "lower_right")},
    "dense": {"mask": np.random.default_rng(3).random((2, 1, 37, 53)) < 0.4},
    "lengths": {"mask": regard.lengths(keys=[53, 20], queries=[37, 11])},
    "everything": {
        "mask": regard.documents(np.arange(37)[None] // 9, np.arange(53)[None] // 11),
        "bias": np.random.default_rng(3).standard_normal((4, 1, 53)).astype(np.float32),
        "softcap": 4.0,
        "sinks": np.array([0.5, -1, 2, 0], np.float32),
        "scale": 0.5,
    },
}


@pytest.fixture(params=CASES)
def case(request):
    """An operator (2, 4, 37, 53) and its weights in float64."""
    q, k, _ = arrays(np.random.default_rng(1), (2, 4, 2, 37, 53, 16, 16))
    options = CASES[request.param]
    p, lse = reference.weights(make(q, k, **options))
    s = reference.scores(make(q, k, **options))
    return regard.weights(q, k, **options), p, s, lse


def close(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_products(case):
    w, p, _, _ = case
    v = RNG.standard_normal((2, 2, 53, 5)).astype(np.float32)
    close(w @ v, p @ np.repeat(v, 2, axis=1))
    own = RNG.standard_normal((2, 4, 53, 5)).astype(np.float32)
    close(w @ own, p @ own)
    close(w @ own[0, 0], p @ own[0, 0])
    y = RNG.standard_normal((2, 4, 37, 3)).astype(np.float32)
    np.testing.assert_allclose(w.mT @ y, p.swapaxes(-1, -2) @ y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(w.mT @ y[0, 0], p.swapaxes(-1, -2) @ y[0, 0], rtol=1e-5, atol=1e-5)
    assert w.mT.shape == (2, 4, 53, 37) and w.mT.mT is w


def test_dense_rows_columns_and_entries(case):
    w, p, s, _ = case
    close(w.dense(), p)
    close(w.scores(), s)
    close(w.rows([3, -1, 3, 20]), p[:, :, [3, -1, 3, 20]])
    close(w.columns([50, 2]), p[..., [50, 2]])
    close(w.entries([3, 36], [0, -1]), p[:, :, [3, 36], [0, -1]])
    assert w.rows([]).shape == (2, 4, 0, 53)


INDICES = [
    *(0, (1, 2), (slice(1, 2), slice(0, 3)), (..., 17, slice(None)), (..., 4), (..., 5, 6)),
    *((0, 1, 2), (0, slice(None), slice(3, 9, 2), slice(-5, None)), (..., slice(None, None, -1))),
    *((slice(None), slice(1, 4, 2)), (slice(None), slice(2, 4)), (slice(None), -1)),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing(case, index):
    w, p, _, lse = case
    part, expected = w[index], p[index]
    if isinstance(part, regard.AttentionWeights):
        assert part.shape == expected.shape
        close(part.dense(), expected)
        close(part.lse(), lse[index])
        v = RNG.standard_normal((53, 5)).astype(np.float32)
        close(part @ v, expected @ v)
        y = RNG.standard_normal((37, 3)).astype(np.float32)
        close(part.mT @ y, expected.swapaxes(-1, -2) @ y)
        close(part.received(), expected.sum(axis=-2))
    else:
        close(part, expected)


def test_indexing_twice_is_indexing_once(case):
    w, p, _, _ = case
    close(w[1][2].dense(), p[1, 2])
    close(w[:, 2][0].dense(), p[0, 2])
    close(w[1][1:3][0][4], p[1, 1, 4])
    assert w[:, 2][:, ..., 3, 4].shape == (2,)


def test_one_number_a_query(case):
    w, p, s, lse = case
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0).sum(-1)
        effective = np.where(p.any(-1), 1 / (p**2).sum(-1), 0)
    close(w.lse(), lse)
    close(w.max_score(), s.max(-1))
    close(w.max_weight(), p.max(-1))
    close(w.entropy(), entropy)
    close(w.effective_keys(), effective)
    distance = np.abs(np.arange(53) - np.arange(37)[:, None] - 16)
    close(w.distance(16), (p * distance).sum(-1))


def test_distance_bins_and_offsets(case):
    w, p, _, _ = case
    distance = np.abs(np.arange(53) - np.arange(37)[:, None])
    bins = w.distance_bins()
    assert bins.shape[-1] == 7
    for n, (low, high) in enumerate([(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63)]):
        close(bins[..., n], (p * ((low <= distance) & (distance <= high))).sum(-1))
    offsets = w.offsets((-1, 0, 20))
    for n, offset in enumerate((-1, 0, 20)):
        for i in range(37):
            inside = 0 <= i + offset < 53
            close(offsets[:, :, i, n], p[:, :, i, i + offset] if inside else 0)


def test_mass(case):
    w, p, _, _ = case
    close(w.mass(), p[..., 0])
    close(w.mass(3), p[..., :3].sum(-1))
    chosen = np.arange(53) % 5 == 0
    close(w.mass(chosen), p[..., chosen].sum(-1))
    groups = np.stack([np.arange(53) % 3 - 1, np.arange(53) % 2])
    found = w.mass(groups)
    for b in range(2):
        for g in range(2):
            close(found[b, ..., g], p[b][..., groups[b] == g].sum(-1))


def test_top_k(case):
    w, p, s, _ = case
    weights, keys = w.top_k(6)
    order = np.argsort(-s, axis=-1, kind="stable")[..., :6]
    visible = np.take_along_axis(s, order, -1) > -np.inf
    expected = np.take_along_axis(p, order, -1)
    close(weights, np.where(visible, expected, 0))
    assert np.array_equal(keys == -1, ~visible)
    found = np.where(visible, np.take_along_axis(p, np.maximum(keys, 0), -1), 0)
    close(found, weights)


def test_ties_go_to_the_lower_key_and_missing_keys_are_minus_one():
    q, k = np.zeros((1, 1, 2, 4), np.float32), np.zeros((1, 1, 5, 4), np.float32)
    weights, keys = regard.weights(q, k, mask=regard.prefix(3)).top_k(4)
    assert keys[0, 0].tolist() == [[0, 1, 2, -1]] * 2
    close(weights[0, 0], [[1 / 3] * 3 + [0]] * 2)


def test_threshold(case):
    w, p, _, _ = case
    edges = w.threshold(0.07)
    expected = np.argwhere(w.dense() >= np.float32(0.07))
    found = np.stack([edges.batch, edges.head, edges.query, edges.key], axis=-1)
    assert np.array_equal(found, expected)
    close(edges.weight, p[tuple(expected.T)])


def test_received(case):
    w, p, s, _ = case
    close(w.received(), p.sum(-2))
    close(w.received("max"), p.max(-2))
    viewers = np.maximum((s > -np.inf).sum(-2), 1)
    close(w.received("mean"), p.sum(-2) / viewers)
    close(w.received(queries=slice(-8, None)), p[:, :, -8:].sum(-2))
    close(w.received(queries=[0, 5]), p[:, :, [0, 5]].sum(-2))


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (37, 53), (64, 64)])
def test_pooled(case, shape):
    w, p, _, _ = case
    rows, columns = min(shape[0], 37), min(shape[1], 53)
    total, largest = np.zeros((2, 4, rows, columns)), np.zeros((2, 4, rows, columns))
    for i in range(37):
        for j in range(53):
            cell = (..., i * rows // 37, j * columns // 53)
            total[cell] += p[..., i, j]
            largest[cell] = np.maximum(largest[cell], p[..., i, j])
    both = w.pooled(shape, "both")
    close(both.sum, total)
    close(both.max, largest)
    close(w.pooled(shape), total)


def test_attend_gives_the_output_bit_for_bit_and_all_read_outs_in_one_sweep(case):
    w, _, _, _ = case
    v = RNG.standard_normal((2, 2, 53, 8)).astype(np.float32)
    y, seen = w.attend(v, read_outs="default", top_k=3, offsets=[0], threshold={"least": 0.2})
    assert np.array_equal(y, w @ v)
    for name in ("lse", "max_weight", "entropy", "effective_keys", "distance", "received"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(w, name)())
    assert seen.top_k.keys.shape == (2, 4, 37, 3) and seen.offsets.shape == (2, 4, 37, 1)
    assert seen.pooled.max.shape == (2, 4, 37, 53)
    only = w.attend(v, entropy=True, lse=False)[1]
    assert vars(only).keys() == {"entropy"}


def test_layout_concerns_only_arrays_that_go_in_and_come_out():
    q, k, v = arrays(np.random.default_rng(1), (2, 4, 2, 6, 9, 8, 5))
    w = regard.weights(q, k)
    other = regard.weights(q.swapaxes(1, 2), k.swapaxes(1, 2), layout="BLHD")
    assert other.shape == (2, 4, 6, 9)
    np.testing.assert_array_equal(other.entropy(), w.entropy())
    y = other @ v.swapaxes(1, 2)
    np.testing.assert_array_equal(y, (w @ v).swapaxes(1, 2))
    np.testing.assert_array_equal(other.mT @ y, (w.mT @ (w @ v)).swapaxes(1, 2))
    close(other[0] @ v.swapaxes(1, 2)[0], (w @ v).swapaxes(1, 2)[0])
    close(other[:, 1] @ v[0, 0], (w @ v[0, 0])[:, 1])


def test_no_batch_and_several_batch_dimensions():
    q, k, v = arrays(np.random.default_rng(1), (6, 4, 2, 5, 7, 8, 3))
    w = regard.weights(q[0], k[0])
    assert w.shape == (4, 5, 7)
    close(w @ v[0], (regard.weights(q, k) @ v)[0])
    folded = [a.reshape(2, 3, *a.shape[1:]) for a in (q, k, v)]
    wide = regard.weights(*folded[:2], mask=regard.causal("lower_right"))
    flat = regard.weights(q, k, mask=regard.causal("lower_right"))
    close(wide @ folded[2], (flat @ v).reshape(2, 3, 4, 5, 3))
    close(wide.received(), flat.received().reshape(2, 3, 4, 7))
    close(wide[1, 2, 3].dense(), flat[5, 3].dense())
    close(wide[:, 1].entropy(), flat.entropy().reshape(2, 3, 4, 5)[:, 1])
    with pytest.raises(ShapeError, match=r"\(2, 3, heads, L, size\)"):
        wide @ folded[2].swapaxes(0, 1)


def test_an_operator_is_no_array():
    q, k, _ = arrays(np.random.default_rng(1))
    with pytest.raises(OptionError, match=r"call dense\(\)"):
        np.asarray(regard.weights(q, k))


def test_changing_queries_in_place_makes_the_operator_stale():
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8)
    w = regard.weights(q, k)
    kept = w.copy()
    before = w.dense()
    q.mul_(2)
    for use in (lambda: w.dense(), lambda: w.lse(), lambda: w @ torch.ones(7, 1), lambda: w[0]):
        with pytest.raises(StaleOperator, match=r"w\.copy\(\)"):
            use()
    assert torch.equal(kept.dense(), before)


def test_memory_is_linear_in_length():
    q, k, _ = arrays(np.random.default_rng(1), (1, 1, 1, 4096, 4096, 16, 16))
    w = regard.weights(q, k)
    tracemalloc.start()
    w.attend(q, read_outs="default")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20  # the matrix alone would take 64 MiB


REFUSED = [
    (lambda w: w.top_k(0), OptionError, "1 or more"),
    (lambda w: w.threshold(0), OptionError, "above 0"),
    (lambda w: w.received("median"), OptionError, '"sum", "mean" or "max"'),
    (lambda w: w.pooled((0, 3)), OptionError, "rows and columns"),
    (lambda w: w.mass(0), OptionError, "1 or more"),
    (lambda w: w.mass(np.ones(3, bool)), ShapeError, r"\(Lk\,\) or \(B, Lk\)"),
    (lambda w: w.mass(np.ones(53)), OptionError, "group number"),
    (lambda w: w.rows([37]), IndexError, "outside"),
    (lambda w: w.rows([0.5]), OptionError, "vector of integers"),
    (lambda w: w.entries([1, 2], [1]), ShapeError, "as many"),
    (lambda w: w[[0, 1]], OptionError, r"rows\(\), columns\(\) or entries\(\)"),
    (lambda w: w[0, 0, 0, 0, 0], IndexError, "5 indices"),
    (lambda w: w[2], IndexError, "size 2"),
    (lambda w: w[True], OptionError, "indexed with True"),
    (lambda w: w.offsets([0.5]), OptionError, "whole numbers"),
    (lambda w: w.pooled(5), OptionError, "two sizes"),
    (lambda w: w.pooled((2.5, 3)), OptionError, "two sizes"),
    (lambda w: w @ np.ones((1, 53, 4), np.float32), ShapeError, "matrix"),
    (lambda w: w @ np.ones((52, 4), np.float32), ShapeError, "same length"),
    (lambda w: w @ 3, ArrayTypeError, "value of type int"),
    (lambda w: w @ torch.ones(53, 4), ArrayTypeError, "query from numpy, value from torch"),
    (lambda w: w @ np.ones((3, 2, 53, 4), np.float32), ShapeError, r"\(2, heads, L, size\)"),
    (lambda w: w.mT @ torch.ones(37, 4), ArrayTypeError, "query from numpy, y from torch"),
    (lambda w: w.mT @ np.ones((37, 4)), DtypeError, "y of type float64"),
    (lambda w: w.mT @ np.ones((36, 4), np.float32), ShapeError, "B, H, Lq, C"),
    (lambda w: w.attend(np.ones((53, 4), np.float32), entrpy=True), OptionError, "entropy"),
    (lambda w: w.attend(np.ones((53, 4), np.float32), entropy=3), OptionError, "entropy=True"),
    (lambda w: w.attend(np.ones((53, 4), np.float32), read_outs="all"), OptionError, "default"),
]


@pytest.mark.parametrize(("use", "kind", "text"), REFUSED)
def test_bad_requests_are_refused(use, kind, text):
    q, k, _ = arrays(np.random.default_rng(1), (2, 4, 2, 37, 53, 16, 16))
    with pytest.raises(kind, match=text):
        use(regard.weights(q, k))


def test_an_operator_tells_what_it_is():
    q, k, _ = arrays(np.random.default_rng(1), (2, 4, 2, 37, 53, 16, 16))
    w = regard.weights(q, k, mask=regard.causal("lower_right"))
    assert repr(w) == (
        "AttentionWeights (B, H, Lq, Lk) = (2, 4, 37, 53), float32, "
        "mask causal(align='lower_right')"
    )
    assert "transposed" in repr(w.mT)
    assert isinstance(w.attend(q[:, :2, :1].repeat(53, 2), lse=True)[1], types.SimpleNamespace)


def test_an_operator_survives_copying_and_pickling(case):
    w, p, _, _ = case
    for again in (
        copy.deepcopy(w),
        pickle.loads(pickle.dumps(w)),
        pickle.loads(pickle.dumps(w[1])),
    ):
        close(again.dense(), p if again.ndim == 4 else p[1])
    q = torch.randn(1, 2, 5, 8)
    q.mul_(2)
    w = regard.weights(q, q)
    assert torch.equal(copy.deepcopy(w).dense(), w.dense())


def test_no_heads_and_no_batch_elements_are_left(case):
    w, _, _, _ = case
    for part, shape in ((w[:, 0:0], (2, 0)), (w[0:0], (0, 4)), (w[0:0, 0:0], (0, 0))):
        assert part.dense().shape == (*shape, 37, 53)
        assert part.entropy().shape == part.lse().shape == (*shape, 37)
        assert (part @ np.ones((53, 3), np.float32)).shape == (*shape, 37, 3)


def test_columns_far_apart_take_memory_linear_in_length():
    q, k, _ = arrays(np.random.default_rng(1), (1, 1, 1, 4096, 4096, 16, 16))
    w = regard.weights(q, k)
    tracemalloc.start()
    w.columns([0, 4095])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20  # the matrix alone would take 64 MiB


def test_changing_bias_sinks_or_mask_in_place_makes_the_operator_stale():
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8)
    for name, array in (
        ("bias", torch.zeros(5, 7)),
        ("sinks", torch.zeros(2)),
        ("mask", torch.ones(5, 7, dtype=torch.bool)),
    ):
        w = regard.weights(q, k, **{name: array})
        kept, part, before = w.copy(), w[0], w.dense()
        array[..., 0] = 5
        array.zero_()
        for use in (w.dense, part.dense):
            with pytest.raises(StaleOperator, match=r"w\.copy\(\)"):
                use()
        assert torch.equal(kept.dense(), before)
