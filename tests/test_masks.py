"""Masks say what their definitions say, alone and combined, and refuse what is ambiguous."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.errors import MaskError, OptionError
from regard.masks import Extent, Mask, as_mask, flatten, rebuild, visibility

sizes = st.integers(0, 12)


def seen(mask: Mask, extent: Extent) -> np.ndarray:
    """(B, H, Lq, Lk) boolean."""
    shape = (extent.flat_batch, extent.heads, extent.queries, extent.keys)
    return np.broadcast_to(visibility(mask, extent).as_dense(extent.keys), shape)


def grid(queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(queries)[:, None], np.arange(keys)[None, :]


@given(sizes, sizes, st.sampled_from(["upper_left", "lower_right", -3, 4]))
def test_causal_and_window(queries, keys, align):
    i, j = grid(queries, keys)
    offset = {"upper_left": 0, "lower_right": keys - queries}.get(align, align)
    extent = Extent((2,), 3, queries, keys)
    assert np.array_equal(seen(regard.causal(align), extent)[1, 2], j <= i + offset)
    window = seen(regard.window(2, 1, align), extent)[0, 0]
    assert np.array_equal(window, (j - i - offset >= -2) & (j - i - offset <= 1))
    half = seen(regard.window(None, 1, align), extent)[0, 0]
    assert np.array_equal(half, j - i - offset <= 1)


def test_an_offset_for_each_batch_element():
    i, j = grid(4, 9)
    found = seen(regard.causal(np.array([2, 5])), Extent((2,), 1, 4, 9))
    assert np.array_equal(found[:, 0], j <= i + np.array([2, 5])[:, None, None])


def test_lengths_prefix_and_keys():
    i, j = grid(5, 7)
    extent = Extent((2,), 2, 5, 7)
    found = seen(regard.lengths(keys=[3, 7], queries=[5, 2]), extent)
    for b, (keys, queries) in enumerate(((3, 5), (7, 2))):
        assert np.array_equal(found[b, 1], (j < keys) & (i < queries))
    assert np.array_equal(seen(regard.prefix(3), extent)[0, 0], np.broadcast_to(j < 3, (5, 7)))
    keep = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]], bool)
    found = seen(regard.keys(keep), extent)
    assert np.array_equal(found, np.broadcast_to(keep[:, None, None], found.shape))


def test_keys_with_many_holes_become_dense_and_stay_exact():
    keep = np.arange(64)[None] % 2 == 0
    normal = visibility(regard.keys(keep), Extent((1,), 1, 3, 64))
    assert normal.intervals is None and normal.dense.shape == (1, 1, 1, 64)
    assert np.array_equal(normal.as_dense(64)[0, 0, 0], keep[0])


@given(st.lists(st.integers(-1, 3), min_size=0, max_size=14), st.integers(0, 14))
def test_documents(ids, more):
    key_ids = (ids * 3)[:more]
    extent = Extent((1,), 1, len(ids), len(key_ids))
    given_ids, given_keys = np.array([ids], int), np.array([key_ids], int)
    expected = (given_ids[0][:, None] == given_keys) & (given_ids[0][:, None] >= 0)
    assert np.array_equal(seen(regard.documents(given_ids, given_keys), extent)[0, 0], expected)


def test_documents_by_cumulative_lengths_leave_the_rest_as_padding():
    extent = Extent((1,), 1, 7, 7)
    found = seen(regard.documents(cu_lengths=[0, 2, 2, 5]), extent)
    ids = np.array([[0, 0, 2, 2, 2, -1, -1]])
    assert np.array_equal(found, seen(regard.documents(ids), extent))
    assert not found[0, 0, 5:].any()


leaves = st.one_of(
    st.builds(regard.causal, st.integers(-4, 8)),
    st.builds(regard.window, st.integers(0, 4), st.integers(0, 4), st.integers(-3, 3)),
    st.builds(regard.prefix, st.integers(0, 9)),
    st.builds(lambda a, b: regard.lengths(keys=[a, b]), st.integers(0, 9), st.integers(0, 9)),
    st.builds(lambda n: regard.keys(np.arange(9)[None] % n != 0), st.integers(1, 4)),
    st.builds(lambda n: as_mask(np.arange(63).reshape(7, 9) % n != 0), st.integers(1, 4)),
)


@given(st.recursive(leaves, lambda m: st.tuples(st.sampled_from("&|"), m, m), max_leaves=6))
def test_combinations_are_what_numpy_makes_of_the_parts(tree):
    extent = Extent((2,), 1, 7, 9)

    def evaluate(node) -> tuple[Mask, np.ndarray]:
        if isinstance(node, Mask):
            return node, seen(node, extent)
        (one, x), (other, y) = evaluate(node[1]), evaluate(node[2])
        return (one & other, x & y) if node[0] == "&" else (one | other, x | y)

    mask, expected = evaluate(tree)
    assert np.array_equal(seen(mask, extent), expected)
    structure, arrays = flatten(mask)
    hash(structure)
    assert np.array_equal(seen(rebuild(structure, arrays), extent), expected)


@given(st.lists(leaves, min_size=1, max_size=4))
def test_the_normal_form_is_disjoint_and_ascending(masks):
    mask = masks[0]
    for n, other in enumerate(masks[1:]):
        mask = mask | other if n % 2 else mask & other
    intervals = visibility(mask, Extent((2,), 1, 7, 9)).intervals
    if intervals is None:
        return
    assert intervals.dtype == np.int32 and intervals.min(initial=0) >= 0
    for pairs in intervals.reshape(-1, *intervals.shape[-2:]):
        full = pairs[pairs[:, 0] < pairs[:, 1]]
        assert np.all(pairs[:, 0] <= pairs[:, 1]) and np.all(full[1:, 0] >= full[:-1, 1])
        assert pairs.max(initial=0) <= 9


@pytest.mark.parametrize("module", [np, torch])
def test_arrays_combine_from_either_side(module):
    eye = module.eye(6, dtype=module.bool if module is torch else bool)
    extent = Extent((1,), 1, 6, 6)
    expected = np.eye(6, dtype=bool) | (grid(6, 6)[1] < 2)
    for mask in (eye | regard.prefix(2), regard.prefix(2) | eye):
        assert isinstance(mask, Mask)
        assert np.array_equal(seen(mask, extent)[0, 0], expected)
    both = eye & regard.prefix(2)
    assert np.array_equal(seen(both, extent)[0, 0], np.eye(6, dtype=bool) & (grid(6, 6)[1] < 2))


def test_several_batch_dimensions():
    dense = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 1, 4, 5) % 3 == 0
    extent = Extent((2, 3), 2, 4, 5)
    found = seen(as_mask(dense), extent).reshape(extent.shape)
    assert np.array_equal(found, np.broadcast_to(dense, extent.shape))
    shared = seen(as_mask(dense[:1]), extent).reshape(extent.shape)
    assert np.array_equal(shared, np.broadcast_to(dense[:1], extent.shape))
    lengths = np.array([[1, 2, 3], [4, 5, 0]])
    found = seen(regard.lengths(keys=lengths), extent).reshape(extent.shape)
    assert np.array_equal(found[:, :, 0, 0].sum(axis=-1), lengths)


def test_a_mask_draws_itself():
    assert (regard.causal() & regard.window(1, 0)).draw(3) == "■ · ·\n■ ■ ·\n· ■ ■"
    assert regard.causal("lower_right").draw(2, 4) == "■ ■ ■ ·\n■ ■ ■ ■"
    assert "■ ■ · · · · · ·" in str(regard.causal() | regard.prefix(2))
    assert repr(regard.causal() & regard.window(3, None)) == "causal() & window(left=3, right=None)"
    assert repr(regard.lengths(keys=[2, 3])) == "lengths(keys=array(2,))"


def test_a_mask_without_arrays_is_normalised_once():
    extent = Extent((3,), 4, 50, 50)
    assert visibility(regard.causal(), extent) is visibility(regard.causal(), extent)


REFUSED = [
    (lambda: regard.window(-1, 0), OptionError, r"left is -1"),
    (lambda: regard.window(0, 1.5), OptionError, r"right is 1.5"),
    (lambda: regard.causal("middle"), OptionError, r"align='middle'"),
    (lambda: regard.causal(np.array([0.5])), MaskError, "causal.align. of type float64"),
    (lambda: regard.lengths(), OptionError, "lengths of the keys, of the queries, or both"),
    (lambda: regard.lengths(keys=[1.5]), MaskError, "Wanted: integers"),
    (lambda: regard.keys(np.ones((1, 4))), MaskError, "keep != 0"),
    (lambda: regard.documents(), OptionError, "either ids= or cu_lengths="),
    (lambda: as_mask(np.zeros((3, 3))), MaskError, "pass it as bias="),
    (lambda: as_mask(np.zeros((3, 3), int)), MaskError, "mask != 0"),
    (lambda: as_mask("causal"), MaskError, r"regard.causal\(\)"),
    (lambda: regard.causal() & 3, MaskError, "mask of type int"),
]


@pytest.mark.parametrize(("make", "kind", "text"), REFUSED)
def test_what_is_no_mask_is_refused(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


UNFIT = [
    (regard.causal(), "upper_left.*lower_right"),
    (regard.window(1, 1), "upper_left.*lower_right"),
    (regard.lengths(keys=[1, 2, 3]), "one for each of the 2 batch elements"),
    (regard.lengths(keys=[-1, 2]), "0 or more"),
    (regard.keys(np.ones((2, 4), bool)), r"\(B, Lk\) = \(2, 7\)"),
    (regard.documents(np.zeros((2, 9), int)), r"documents\(ids\).*\(2, 5\)"),
    (regard.documents(cu_lengths=[0, 3, 2]), "does not fall"),
    (regard.documents(cu_lengths=[0, 30]), "an end within the sequence"),
    (as_mask(np.ones((2, 7), bool)), r"regard.keys\(mask\)"),
    (as_mask(np.ones((2, 5, 7), bool)), r"pass mask\[:, None\]"),
    (as_mask(np.ones((4, 7), bool)), r"broadcasts to \(B, H, Lq, Lk\) = \(2, 3, 5, 7\)"),
]


@pytest.mark.parametrize(("mask", "text"), UNFIT, ids=[repr(m) for m, _ in UNFIT])
def test_what_does_not_fit_the_sizes_is_refused_with_what_was_meant(mask, text):
    with pytest.raises(MaskError, match=text):
        visibility(mask, Extent((2,), 3, 5, 7))


@pytest.mark.parametrize("far", [2**40, 2**63 - 1, 2**80])
def test_numbers_beyond_every_position_mean_everything_or_nothing(far):
    extent = Extent((2,), 1, 3, 5)
    for mask in (regard.causal(far), regard.window(far, far, 0), regard.prefix(far)):
        assert seen(mask, extent).all()
    assert seen(regard.lengths(keys=np.full(2, 2**62)), extent).all()
    assert not seen(regard.causal(-far), extent).any()


@pytest.mark.parametrize("batch", [(), (0,), (2, 0), (2, 3)])
@pytest.mark.parametrize("lengths", [(0, 0), (0, 7), (5, 0)])
def test_masks_of_empty_sequences(batch, lengths):
    queries, keys = lengths
    extent = Extent(batch, 2, queries, keys)
    for mask in (
        as_mask(np.ones((*batch, 1, queries, keys), bool)),
        regard.keys(np.ones((*batch, keys), bool)),
        regard.documents(np.zeros((*batch, queries), int), np.zeros((*batch, keys), int)),
        regard.documents(np.zeros((1, queries), int), np.zeros((*batch, keys), int)),
    ):
        assert seen(mask, extent).size == 0


def test_a_mask_is_neither_true_nor_false():
    with pytest.raises(MaskError, match="&"):
        regard.causal() and regard.window(1, 0)


def test_a_window_open_on_both_sides_hides_nothing():
    for mask in (regard.window(None, None), regard.window(None, None, 3) & regard.prefix(9)):
        assert seen(mask, Extent((2,), 3, 5, 7)).all()


@pytest.mark.parametrize("border", ["clip", "shift"])
@pytest.mark.parametrize("shape", [7, (3, 5), (2, 3, 4), (1, 6), (4, 0)])
@pytest.mark.parametrize("radius", [0, 1, 2, 9])
def test_a_neighborhood_is_near_along_every_axis(shape, radius, border):
    sizes = (shape,) if isinstance(shape, int) else shape
    cells = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes))
    centre = cells[:, None]
    if border == "shift":  # the nearest cell whose whole neighbourhood lies inside
        within = np.array([min(radius, (size - 1) // 2) for size in sizes])
        last = np.array(sizes) - 1 - np.array([min(radius, size // 2) for size in sizes])
        centre = np.clip(centre, within, np.maximum(last, within))
    near = (np.abs(cells[None] - centre) <= radius).all(-1)
    mask = regard.neighborhood(shape, radius, border=border)
    found = seen(mask, Extent((2,), 3, len(cells), len(cells)))
    assert np.array_equal(found[1, 2], near)


def test_neighborhoods_have_a_radius_for_each_axis_and_fit_their_grid():
    found = seen(regard.neighborhood((3, 4), (0, 2)), Extent((1,), 1, 12, 12))[0, 0]
    i, j = grid(12, 12)
    assert np.array_equal(found, (i // 4 == j // 4) & (abs(i % 4 - j % 4) <= 2))
    with pytest.raises(MaskError, match="12 cells of the grid"):
        seen(regard.neighborhood((3, 4), 1), Extent((1,), 1, 12, 13))
    with pytest.raises(OptionError, match="one radius or one for each"):
        regard.neighborhood((3, 4), (1, 1, 1))
    with pytest.raises(OptionError, match="0 or more"):
        regard.neighborhood((3, 4), -1)
    with pytest.raises(OptionError, match='"clip" or "shift"'):
        regard.neighborhood((3, 4), 1, border="wrap")


@given(st.integers(1, 4), st.integers(1, 4), sizes, sizes, st.integers(2, 4), st.data())
def test_blocks_switch_on_what_falls_in_them(rows, columns, queries, keys, rank, data):
    lead = (2, 3)[4 - rank :]
    shape = (*lead, -(-queries // rows), -(-keys // columns))
    on = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) < 0.5
    i, j = grid(queries, keys)
    expected = on[..., i // rows, j // columns]
    found = seen(regard.blocks(on, (rows, columns)), Extent((2,), 3, queries, keys))
    assert np.array_equal(found, np.broadcast_to(expected, found.shape))


def test_blocks_of_another_shape_say_which_was_wanted():
    on = np.ones((2, 3), bool)
    with pytest.raises(MaskError, match=r"\(Lq / 4, Lk / 4\) = \(2, 2\)"):
        seen(regard.blocks(on, 4), Extent((1,), 1, 8, 8))
    with pytest.raises(MaskError, match="boolean, a row for each block"):
        regard.blocks(np.ones((2, 2)), 4)
    with pytest.raises(OptionError, match="1 or more"):
        regard.blocks(on, 0)


def test_many_intervals_of_long_rows_stay_intervals():
    mask = regard.neighborhood((40, 40), 9) & regard.prefix(1500)
    seen = mask.visibility(Extent((1,), 1, 1600, 1600))
    assert seen.dense is None and seen.intervals.shape[-2] > 16
    both = regard.neighborhood((40, 40), 9).visibility(Extent((1,), 1, 1600, 1600)).as_dense(1600)
    both = both & (np.arange(1600) < 1500)
    np.testing.assert_array_equal(seen.as_dense(1600), both)


def test_a_grid_without_cells():
    q = np.ones((1, 1, 0, 4), np.float32)
    assert regard.attention(q, q, q, mask=regard.neighborhood((0, 3), 1)).shape == q.shape
