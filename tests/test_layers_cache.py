"""KeyValueCache: what it holds, and that it does not copy everything at each step."""

from __future__ import annotations

import itertools

import pytest
import torch

import regard
from regard.errors import DtypeError, MaskError, OptionError, ShapeError
from regard.layers import Alibi, KeyValueCache, MultiHeadAttention, Rotary


def pieces(count, batch=2):
    torch.manual_seed(0)
    return [(torch.randn(batch, 1, 3, 4), torch.randn(batch, 1, 3, 5)) for _ in range(count)]


def test_it_holds_what_was_appended():
    cache, given = KeyValueCache(), pieces(11)
    for n, (key, value) in enumerate(given, start=1):
        cache.append(key, value)
        assert len(cache) == n
    torch.testing.assert_close(cache.key, torch.cat([key for key, _ in given], 1))
    torch.testing.assert_close(cache.value, torch.cat([value for _, value in given], 1))


def test_what_does_not_fit_is_refused_and_changes_nothing():
    cache, ((key, value), (other, _)) = KeyValueCache(), pieces(2)
    cache.append(key, value)
    refused = [
        (other[:1], value, ShapeError),
        (other[:, :, :1], value, ShapeError),
        (other[0], value, ShapeError),
        (other.expand(2, 2, 3, 4), value, ShapeError),
        (other.double(), value, DtypeError),
    ]
    for one, two, kind in refused:
        with pytest.raises(kind):
            cache.append(one, two)
    for change in (cache.crop, cache.slide):
        with pytest.raises(OptionError, match="-1"):
            change(-1)
    assert len(cache) == 1 and torch.equal(cache.key, key)


def test_a_call_that_is_refused_leaves_the_cache_as_it_was():
    layer, cache = MultiHeadAttention(8, 2).eval(), KeyValueCache()
    x = torch.randn(1, 6, 8)
    whole = layer(x, mask=regard.causal())
    layer(x[:, :5], cache=cache, mask=regard.causal())
    with pytest.raises(MaskError):
        layer(x[:, 5:], cache=cache, mask=regard.causal())
    assert len(cache) == 5
    found = layer(x[:, 5:], cache=cache, mask=regard.causal(align="lower_right"))
    torch.testing.assert_close(found, whole[:, 5:])


def test_memory_is_reserved_in_advance():
    cache, places = KeyValueCache(), []
    for key, value in pieces(100):
        cache.append(key, value)
        places.append(cache.key.data_ptr())
    moved = sum(one != other for one, other in itertools.pairwise(places))
    assert moved <= 8


def test_what_was_given_is_never_written_to():
    room, other = torch.zeros(2, 8, 3, 4), torch.zeros(2, 8, 3, 5)
    cache = KeyValueCache(room, other)
    cache.crop(3)
    for key, value in pieces(2):
        cache.append(key, value)
    assert len(cache) == 5
    assert not room.any() and not other.any()


def test_crop_forgets_the_end():
    cache, given = KeyValueCache(), pieces(5)
    for key, value in given:
        cache.append(key, value)
    cache.crop(2)
    cache.append(*given[4])
    expected = torch.cat([given[n][0] for n in (0, 1, 4)], 1)
    torch.testing.assert_close(cache.key, expected)
    cache.crop(7)
    assert len(cache) == 3


def test_slide_keeps_the_end_without_copies():
    cache, given, places = KeyValueCache(), pieces(100), []
    for n, (key, value) in enumerate(given, start=1):
        cache.append(key, value)
        cache.slide(8)
        assert len(cache) == min(n, 8) and cache.position == n
        places.append(cache.key.untyped_storage().data_ptr())
    torch.testing.assert_close(cache.key, torch.cat([key for key, _ in given[-8:]], 1))
    torch.testing.assert_close(cache.value, torch.cat([value for _, value in given[-8:]], 1))
    assert sum(one != other for one, other in itertools.pairwise(places)) <= 20
    assert cache.key.untyped_storage().nbytes() <= 16 * cache.key[:, :1].nbytes
    cache.crop(5)
    assert cache.position == 97


@pytest.mark.parametrize("options", [{"rotary": True}, {"position_bias": Alibi}], ids=str)
def test_a_layer_with_a_sliding_cache_is_one_with_a_window(options):
    torch.manual_seed(0)
    given = {"rotary": Rotary(4)} if "rotary" in options else {"position_bias": Alibi(2)}
    layer, x = MultiHeadAttention(8, 2, **given), torch.randn(2, 12, 8)
    cache, steps = KeyValueCache(), []
    with torch.no_grad():
        for i in range(12):
            cache.slide(4)
            steps.append(layer(x[:, i : i + 1], cache=cache))
        expected = layer(x, mask=regard.window(4, 0))
    torch.testing.assert_close(torch.cat(steps, 1), expected)


def test_reorder_moves_and_repeats_rows():
    cache, given = KeyValueCache(), pieces(3)
    for key, value in given:
        cache.append(key, value)
    before = cache.key.clone()
    cache.reorder(torch.tensor([1, 1, 0]))
    torch.testing.assert_close(cache.key, before[[1, 1, 0]])
    assert cache.value.shape == (3, 3, 3, 5)


def test_gradients_pass_through_reorder():
    key = torch.randn(2, 3, 1, 4, requires_grad=True)
    cache = KeyValueCache(key, torch.randn(2, 3, 1, 4))
    cache.reorder(torch.tensor([1, 1]))
    cache.key.sum().backward()
    assert key.grad.unique().tolist() == [0.0, 2.0]


def test_reorder_keeps_the_memory_reserved():
    cache, given = KeyValueCache(), pieces(4)
    for key, value in given[:3]:
        cache.append(key, value)
    cache.reorder(torch.tensor([1, 0]))
    place = cache.key.data_ptr()
    cache.append(*given[3])
    assert cache.key.data_ptr() == place
    expected = torch.cat([*(key.flip(0) for key, _ in given[:3]), given[3][0]], 1)
    torch.testing.assert_close(cache.key, expected)


def test_gradients_reach_what_was_appended_before():
    cache = KeyValueCache()
    leaves = [(key.requires_grad_(), value) for key, value in pieces(4)]
    total = 0
    for key, value in leaves:
        cache.append(key, value)
        total = total + cache.key.square().sum()
    total.backward()
    for n, (key, _) in enumerate(leaves):
        torch.testing.assert_close(key.grad, 2 * (4 - n) * key.detach())


def test_an_empty_cache_has_nothing_to_show():
    with pytest.raises(ShapeError, match="nothing is yet"):
        KeyValueCache().key  # noqa: B018
    empty = KeyValueCache()
    empty.reorder(torch.tensor([0]))
    assert len(empty) == 0
