"""Watching plain PyTorch models: what is seen, and what is told to be unseen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import regard
from attending import (
    BIAS,
    BOOLEAN,
    Attend,
    AttentionDropout,
    Block,
    arrays,
    nothing_hooked,
    reference,
    seen_of,
)
from regard import errors
from regard.recording import UnseenAttention, page, watch


class ByHand(nn.Module):
    """Attention that nobody can see."""

    def forward(self, query, key, value):
        return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1) @ value


class ByHandAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))
        self.attn_dropout = AttentionDropout()

    def forward(self, x):
        return self.attn_dropout(ByHand()(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


LOWER = torch.tril(torch.ones(5, 7, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "seen", "bias"),
    [
        ({}, None, None),
        ({"scale": 0.3}, None, None),
        ({"is_causal": True}, LOWER, None),
        ({"attn_mask": BOOLEAN}, BOOLEAN, None),
        ({"attn_mask": BIAS}, None, BIAS),
        ({"attn_mask": BIAS.masked_fill(~LOWER, -torch.inf)}, LOWER, BIAS),
        ({"attn_mask": (~LOWER) * torch.finfo(torch.float32).min}, LOWER, None),
        ({"attn_mask": torch.where(LOWER, BIAS, BIAS + torch.finfo().min)}, LOWER, BIAS),
    ],
)
def test_every_kind_of_mask(options, seen, bias):
    query, key, value = arrays()
    found = seen_of(Attend(**options), query, key, value)
    wanted = reference(query, key, seen, bias, options.get("scale"))
    assert (found._problem.mask is None) == (seen is None)
    assert (found._problem.bias is None) == (bias is None)
    assert (found.dense() - wanted).abs().max() <= 1e-6


def test_a_row_that_sees_nothing_is_zero():
    hidden = BOOLEAN.clone()
    hidden[0, 0, 3] = False
    dense = seen_of(Attend(attn_mask=hidden), *arrays()).dense()
    assert not dense[0, :, 3].any()
    assert dense[1, :, 3].sum() > 0


def test_grouped_queries():
    query, key, value = arrays(key_heads=2)
    found = seen_of(Attend(enable_gqa=True), query, key, value)
    assert found.shape == (2, 4, 5, 7)
    assert (found.dense() - reference(query, key)).abs().max() <= 1e-6


@pytest.mark.parametrize("batch", [(), (2,), (3, 2)])
def test_operators_have_four_dimensions(batch):
    query, key, value = arrays(batch=batch)
    mask = torch.rand(*batch, 1, 5, 7) < 0.7
    found = seen_of(Attend(attn_mask=mask), query, key, value)
    assert found.shape == (math.prod(batch), 4, 5, 7)
    wanted = reference(query, key, mask).reshape(found.shape)
    assert (found.dense() - wanted).abs().max() <= 1e-6


def test_no_heads_at_all():
    query, key, value = (torch.randn(length, 8) for length in (5, 7, 7))
    found = seen_of(Attend(), query, key, value)
    assert found.shape == (1, 1, 5, 7)
    assert (found.dense() - reference(query[None], key[None])).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (LOWER, "causal(align=0)"),
        (torch.tril(torch.ones(5, 7).bool(), 2), "causal(align=2)"),
        (torch.triu(torch.tril(torch.ones(5, 7).bool(), 2), 0), "window(left=2, right=0, align=2)"),
        (torch.tensor([True] * 6 + [False]).expand(2, 1, 5, 7), "keys(keep=array(1, 7))"),
        (torch.ones(5, 7).bool(), None),
        (BOOLEAN, "array(2, 1, 5, 7)"),
    ],
)
def test_masks_are_recognised(mask, shown):
    query, key, value = arrays()
    found = seen_of(Attend(attn_mask=mask), query, key, value)
    assert (repr(found).partition("mask ")[2] or None) == shown
    assert (found.dense() - reference(query, key, mask)).abs().max() <= 1e-6


@pytest.mark.parametrize("keys", [1, 2, 5, 9])
def test_recognised_masks_are_exact(keys):
    generator = torch.Generator().manual_seed(keys)
    query, key, value = arrays(queries=6, keys=keys)
    places = torch.arange(keys) - torch.arange(6)[:, None]
    for offset in range(-6, 7):
        for left in (0, 1, 3, 20):
            mask = (places <= offset) & (places >= offset - left)
            mask = mask & (torch.arange(keys) > 0 if left == 1 else torch.ones(keys).bool())
            found = seen_of(Attend(attn_mask=mask), query, key, value).dense()
            assert torch.equal(found > 0, mask.expand(found.shape)), (offset, left)
    mask = torch.rand(2, 4, 6, keys, generator=generator) < 0.5
    found = seen_of(Attend(attn_mask=mask), query, key, value).dense()
    assert torch.equal(found > 0, mask)


def test_the_result_is_the_functions_own_and_gradients_flow():
    query, key, value = (array.requires_grad_() for array in arrays())
    model = Attend()
    with watch(model) as seen:
        output = model(query, key, value)
    output.sum().backward()
    assert value.grad is not None
    assert not seen[0].dense().requires_grad
    assert torch.equal(output, functional.scaled_dot_product_attention(query, key, value))


def test_names_layers_and_heads():
    model = nn.Sequential(*(Block(Attend()) for _ in range(3)))
    x = torch.randn(1, 5, 8)

    def watched(**options):
        with watch(model, **options) as seen, torch.no_grad():
            model(x)
            model(x)
        return seen

    every = watched()
    assert every.names == ["0.attend", "1.attend", "2.attend"] * 2
    assert watched(layers=[2, 0]).names == ["0.attend", "2.attend"] * 2
    assert watched(layers=["1"]).names == ["1.attend"] * 2
    chosen = watched(heads=[1])
    assert chosen.entries[0].numbers == [1]
    assert [call.head_numbers for call in page.record(chosen).calls] == [[1]] * len(chosen)
    assert chosen[0].shape == (1, 1, 5, 5)
    assert torch.equal(chosen[4].dense(), every[4].dense()[:, [1]])
    assert "sharpest: head 1 " in str(chosen)
    assert [w.name for w in every[1:3]] == ["1.attend", "2.attend"]


def test_the_table_of_heads():
    model = nn.Sequential(*(Block(Attend()) for _ in range(3)))
    with watch(model, tokens=list("abcab")) as seen:
        model(torch.randn(1, 5, 8))
    assert len(seen.heads().rows) == 3 * 2


def test_heads_choose_key_heads_masks_and_biases():
    query, key, value = arrays(key_heads=2)
    mask = torch.rand(2, 4, 5, 7) < 0.7
    for term in (mask, BIAS):
        model = Attend(enable_gqa=True, attn_mask=term)
        whole = seen_of(model, query, key, value).dense()
        with watch(model, heads=[2, 1]) as seen:
            model(query, key, value)
        torch.testing.assert_close(seen[0].dense(), whole[:, [2, 1]])


def test_layers_that_match_nothing():
    model = Block(Attend())
    with (
        pytest.warns(UnseenAttention, match=r"layers=\[7\] matches none .* attended: attend"),
        watch(model, layers=[7]) as seen,
    ):
        model(torch.randn(1, 5, 8))
    assert len(seen) == 0
    assert "NOTHING WAS KEPT: layers=[7] matches none of those that attended: attend" in str(seen)


def test_a_long_recording_samples_its_queries_when_printed():
    torch.manual_seed(0)
    model = Attend(is_causal=True, attn_mask=None)
    query, key, value = arrays(queries=200, keys=200, heads=1, key_heads=1, batch=(1,))
    with watch(model) as seen:
        model(query, key, value)
    rows = torch.linspace(0, 199, 64).long()
    wanted = seen[0].dense()[0, 0, rows].amax(-1).mean()
    assert f"head 0 {wanted:.2f}" in str(seen)


def test_hand_written_attention_is_told_of():
    model = nn.ModuleDict({"own": ByHandAttention(), "good": Block(Attend())})
    x = torch.randn(1, 5, 8)
    with (
        pytest.warns(UnseenAttention, match=r"1 modules .* unseen: own \(ByHandAttention\)"),
        watch(model) as seen,
    ):
        model["good"](model["own"](x))
    assert seen.unseen == ["own (ByHandAttention)"]
    assert len(seen) == 1
    assert "NOT SEEN (1)" in str(seen)
    assert "own (ByHandAttention)" in str(seen)


def test_nothing_ran():
    model = Block(Attend())
    with pytest.warns(UnseenAttention, match="nothing was seen"), watch(model) as seen:
        pass
    assert "NOTHING WAS SEEN" in str(seen)
    assert repr(seen) == "Recording of Block: 0 attention calls"


def test_no_warning_hides_an_exception(recwarn):
    with pytest.raises(KeyError), watch(Block(Attend())):
        raise KeyError
    assert not recwarn


def test_tensors_without_numbers_are_told_of():
    model = Attend().to("meta")
    with pytest.warns(UnseenAttention, match="meta device"), watch(model) as seen:
        model(*(array.to("meta") for array in arrays()))
    assert seen.unseen == ["Attend (Attend): tensors on the meta device, which hold no numbers."]


def test_bad_arguments():
    with pytest.raises(errors.ModelError, match=r"type str. Wanted: a torch.nn.Module. To do: pas"):
        watch("bert")
    model = Block(Attend())
    with pytest.raises(errors.OptionError, match="perhaps attend"):
        watch(model, layers=["atend"])
    with pytest.raises(errors.OptionError, match="numbers and names"):
        watch(model, layers=[1.5])
    for wrong in (1.5, b"a", torch.ones(1), object()):
        with pytest.raises(errors.OptionError, match="numbers and names"):
            watch(model, layers=wrong)
    for wrong in (["0"], [], [-1], True, 1.5, "0", object()):
        with pytest.raises(errors.OptionError, match="numbers of heads"):
            watch(model, heads=wrong)
    for wrong in ("a text", 3, torch.arange(5), [1, 2], [["a"], 2]):
        with pytest.raises(errors.OptionError, match=r"tokens .*convert_ids_to_tokens"):
            watch(model, tokens=wrong)
    once = watch(model)
    with once:
        model(torch.randn(1, 5, 8))
        with pytest.raises(errors.ModelError, match="entered before"):
            once.__enter__()
    with pytest.raises(errors.ModelError, match="one watch for each with"):
        once.__enter__()
    with (
        pytest.warns(UnseenAttention, match=r"heads=\[9\] where attention has 2 heads"),
        watch(model, heads=[9]),
    ):
        model(torch.randn(1, 5, 8))
    assert nothing_hooked()


EACH_HEAD = torch.rand(2, 4, 5, 7, generator=torch.Generator().manual_seed(5)) < 0.6


def test_regards_own_attention_is_seen():
    class Own(nn.Module):
        def forward(self, query, key, value):
            mask = regard.causal("lower_right") & EACH_HEAD
            return regard.attention(query, key, value, mask=mask, bias=BIAS, softcap=2.0)

    query, key, value = arrays(key_heads=2)
    options = {"mask": regard.causal("lower_right") & EACH_HEAD, "bias": BIAS, "softcap": 2.0}
    wanted = regard.weights(query, key, **options)
    model = Own()
    alone = model(query, key, value)
    with watch(model) as seen, watch(model, heads=[2, 1]) as chosen:
        assert torch.equal(model(query, key, value), alone)
        seen[0] @ value  # an operator that is applied is no call of the model
    assert seen.names == ["Own"]
    assert torch.equal(seen[0].dense(), wanted.dense())
    torch.testing.assert_close(chosen[0].dense(), wanted.dense()[:, [2, 1]])


def test_heads_that_were_kept_have_their_own_numbers():
    model = nn.Sequential(Block(Attend()))
    x = torch.randn(1, 5, 8)
    with watch(model) as whole, watch(model, heads=np.int64(1)) as kept:
        model(x)
    (row,) = kept.heads()
    assert row.head == 1 and row.strength == whole.heads()[1].strength
    assert "heads 1" in page.record(kept).notes[0] and not page.record(whole).notes


def test_layers_that_match_in_part():
    model = nn.Sequential(*(Block(Attend()) for _ in range(2)))
    x = torch.randn(1, 5, 8)
    with (
        pytest.warns(UnseenAttention, match=r"layers=\[7\] matches none"),
        watch(model, layers=[0, 7]) as seen,
    ):
        model(x)
    assert seen.names == ["0.attend"]
    with watch(model, layers=np.arange(2)) as all_numbers, watch(model, layers="") as root:
        model(x)
    assert len(all_numbers) == len(root) == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_models_are_told_of():
    model = torch.jit.script(nn.MultiheadAttention(8, 2))
    x = torch.randn(5, 1, 8)
    with pytest.warns(UnseenAttention, match="1 modules"), watch(model) as seen:
        model(x, x, x)
    assert len(seen) == 0


def test_empty_batches():
    model = nn.MultiheadAttention(8, 2)
    x = torch.randn(5, 0, 8)
    assert seen_of(model, x, x, x).shape == (0, 2, 5, 5)


def test_tokens_for_fewer_texts_than_there_are():
    model = Block(Attend())
    with watch(model, tokens=[list("abcde")] * 2) as seen:
        model(torch.randn(3, 5, 8))
    with pytest.raises(errors.ShapeError, match="2 texts"):
        seen.heads()
