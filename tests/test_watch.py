"""Watching plain PyTorch models: what is seen, what is told to be unseen, what is put back."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as renamed
from torch.nn.modules import module as hooks
from torch.overrides import _get_current_function_mode
from torch.utils.checkpoint import checkpoint

import regard
from regard import errors
from regard.recording import UnseenAttention, watch


class Attend(nn.Module):
    """Calls scaled_dot_product_attention, under another name, with what it is given."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, query, key, value):
        return renamed(query, key, value, **self.options)


class Block(nn.Module):
    """Projects and attends; `attend` is a module."""

    def __init__(self, attend, heads=2):
        super().__init__()
        self.qkv, self.attend, self.heads = nn.Linear(8, 24), attend, heads

    def forward(self, x):
        split = (*x.shape[:2], self.heads, -1)
        query, key, value = (a.reshape(split).transpose(1, 2) for a in self.qkv(x).chunk(3, -1))
        return self.attend(query, key, value).transpose(1, 2).flatten(2)


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


class AttentionDropout(nn.Module):
    def forward(self, x):
        return x


def arrays(queries=5, keys=7, heads=4, key_heads=4, batch=(2,), seed=0):
    torch.manual_seed(seed)
    shapes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    return [torch.randn(*batch, *shape, 8) for shape in shapes]


def reference(query, key, seen=None, bias=None, scale=None):
    """The weights by the formula, in float64; 0 where nothing is seen."""
    group = query.shape[-3] // key.shape[-3]
    key = key.repeat_interleave(group, dim=-3).double()
    scores = query.double() @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, dim=-1).nan_to_num()


def seen_of(module, *given):
    with watch(module) as seen, torch.no_grad():
        module(*given)
    (found,) = seen
    return found


BOOLEAN = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.6
BIAS = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(4))
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
    assert chosen.kept_heads == [1]
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
        assert torch.equal(seen[0].dense(), whole[:, [2, 1]])


def test_layers_that_match_nothing():
    model = Block(Attend())
    with (
        pytest.warns(UnseenAttention, match=r"layers=\[7\] matches none .* attended: attend"),
        watch(model, layers=[7]) as seen,
    ):
        model(torch.randn(1, 5, 8))
    assert len(seen) == 0


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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 6}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(training, options, batch_first):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options).train(training)
    query, key, value = (torch.randn(3, n, size) for n, size in ((5, 8), (7, 6), (7, 8)))
    if "kdim" not in options:
        key = torch.randn(3, 7, 8)
    padding = torch.zeros(3, 7)
    padding[1, 4:] = -torch.inf
    if not batch_first:
        query, key, value = (a.transpose(0, 1) for a in (query, key, value))
    given = {"key_padding_mask": padding, "attn_mask": BIAS[0], "average_attn_weights": False}
    alone, wanted = model(query, key, value, **given)
    with watch(model) as seen:
        watched, _ = model(query, key, value, **given)
    assert torch.equal(alone, watched)
    assert seen.names == ["MultiheadAttention"]
    assert (seen[0].dense() - wanted).abs().max() <= 1e-6


def test_multihead_attention_on_its_fast_path():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        alone, wanted = model(x, x, x, average_attn_weights=False)
        with watch(model) as seen:
            watched, _ = model(x, x, x, need_weights=False)
    assert torch.equal(alone, watched)
    assert (seen[0].dense() - wanted).abs().max() <= 1e-6


@contextmanager
def fast_paths(enabled):
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_transformer_encoder_keeps_its_fast_path(fast, norm_first, padded):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x = torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = padded
    given = {"src_key_padding_mask": padding} if padded else {}
    with torch.no_grad(), fast_paths(fast):
        alone = model(x, **given)
        with watch(model) as seen:
            watched = model(x, **given)
    assert torch.equal(alone, watched)
    assert seen.names == ["layers.0.self_attn", "layers.1.self_attn"]
    states = model.layers[0].norm1(x) if norm_first else x
    attention = model.layers[0].self_attn.train()
    _, wanted = attention(
        states, states, states, key_padding_mask=padding, average_attn_weights=False
    )
    inside = ~padding[:, None].expand(3, 2, 5)
    assert (seen[0].dense() - wanted).abs()[inside].max() <= 1e-6


def test_the_function_of_multihead_attention():
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            inner = self.inner
            return functional.multi_head_attention_forward(
                *(x, x, x, 8, 2, inner.in_proj_weight, inner.in_proj_bias, None, None, False, 0.0),
                *(inner.out_proj.weight, inner.out_proj.bias),
                average_attn_weights=False,
            )

    model, x = Pool(), torch.randn(5, 3, 8)
    with watch(model) as seen:
        _, wanted = model(x)
    assert seen.names == ["Pool"]
    assert (seen[0].dense() - wanted).abs().max() <= 1e-6


def nothing_hooked():
    empty = not hooks._global_forward_pre_hooks and not hooks._global_forward_hooks
    return empty and _get_current_function_mode() is None


def test_everything_is_put_back():
    model = Block(Attend())
    assert nothing_hooked()
    with pytest.raises(RuntimeError, match="shapes"), watch(model):
        assert not nothing_hooked()
        model(torch.randn(1, 5, 7))
    assert nothing_hooked()
    with watch(model) as seen:
        model(torch.randn(1, 5, 8))
    assert nothing_hooked()
    assert len(seen) == 1


class Failing(nn.TransformerEncoderLayer):
    def __init__(self, error):
        super().__init__(8, 2, 16)
        self.error = error

    def forward(self, src, **kwargs):
        raise self.error


def test_a_forward_that_fails_does_not_hide_the_next():
    model = nn.ModuleList([Failing(ValueError), Block(Attend())])
    x = torch.randn(1, 5, 8)
    with watch(model) as seen:
        with pytest.raises(ValueError):
            model[0](x)
        model[1](x)
    assert seen.names == ["1.attend"]


def test_an_interrupt_leaves_nothing_hooked():
    with pytest.raises(KeyboardInterrupt), watch(Failing(KeyboardInterrupt)) as seen:
        Failing(KeyboardInterrupt)(torch.randn(1, 5, 8))
    assert nothing_hooked()
    assert len(seen) == 0


def test_nested_and_repeated_watches():
    inner, x = Block(Attend()), torch.randn(1, 5, 8)
    outer = nn.Sequential(Block(Attend()), inner)
    with watch(outer) as first:
        with watch(inner) as second:
            outer(x)
        outer(x)
    assert first.names == ["0.attend", "1.attend"] * 2
    assert second.names == ["attend"]
    with watch(outer) as again:
        outer(x)
    assert len(again) == 2
    assert nothing_hooked()


def test_only_the_thread_that_entered_is_watched():
    model, x = Block(Attend()), torch.randn(1, 5, 8)
    other = []

    def elsewhere():
        with watch(model) as seen:
            model(x)
        other.append(seen)
        model(x)

    with watch(model) as seen:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        model(x)
    assert len(seen) == len(other[0]) == 1
    assert nothing_hooked()


@pytest.mark.parametrize("inference", [False, True])
def test_keys_overwritten_in_place(inference):
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("keys", torch.zeros(1, 2, 4, 8))
            self.attend = Attend()

        def forward(self, x, step):
            self.keys[:, :, step] = x[:, :, 0]
            return self.attend(x, self.keys[:, :, : step + 1], self.keys[:, :, : step + 1])

    steps = [torch.randn(1, 2, 1, 8) for _ in range(4)]
    with torch.inference_mode(inference):
        model = Cached()
        with watch(model) as seen:
            for step, x in enumerate(steps):
                model(x, step)
        model.keys.zero_()
    for step, found in enumerate(seen):
        wanted = reference(steps[step], torch.cat(steps[: step + 1], dim=2))
        assert (found.dense() - wanted).abs().max() <= 1e-6


def test_queries_changed_in_place_later_are_stale():
    query, key, value = arrays()
    model = Attend()
    with watch(model) as seen:
        model(query, key, value)
    key.zero_()
    with pytest.raises(errors.StaleOperator):
        seen[0].dense()
    assert "changed in place" in str(seen)


def test_masks_changed_in_place_later_do_not_matter():
    query, key, value = arrays()
    mask, bias = BOOLEAN.clone(), BIAS.clone()
    models = nn.ModuleList([Attend(attn_mask=mask), Attend(attn_mask=bias)])
    with watch(models) as seen:
        for model in models:
            model(query, key, value)
            model.options["attn_mask"].zero_()
            model(query, key, value)
    first, wanted = seen[0].dense(), reference(query, key, BOOLEAN)
    assert (first - wanted).abs().max() <= 1e-6
    assert not seen[1].dense().any()
    assert (seen[2].dense() - reference(query, key, None, BIAS)).abs().max() <= 1e-6
    assert (seen[3].dense() - reference(query, key)).abs().max() <= 1e-6


def test_checkpointed_forwards_are_seen_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)

        def forward(self, x):
            x = self.first(x, x, x)[0]
            return self.second(x, x, x)[0]

    model = Twice()
    x = torch.randn(5, 1, 8, requires_grad=True)
    for reentrant in (True, False):
        with watch(model) as seen:
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        assert seen.names == ["first", "second"]


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
    with pytest.raises(errors.OptionError, match="numbers of heads"):
        watch(model, heads=["0"])
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


def test_regards_own_attention_is_seen():
    class Own(nn.Module):
        def forward(self, query, key, value):
            mask = regard.causal("lower_right") & BOOLEAN
            return regard.attention(query, key, value, mask=mask, bias=BIAS, softcap=2.0)

    query, key, value = arrays(key_heads=2)
    options = {"mask": regard.causal("lower_right") & BOOLEAN, "bias": BIAS, "softcap": 2.0}
    wanted = regard.weights(query, key, **options)
    model = Own()
    alone = model(query, key, value)
    with watch(model) as seen, watch(model, heads=[2, 1]) as chosen:
        assert torch.equal(model(query, key, value), alone)
        seen[0] @ value  # an operator that is applied is no call of the model
    assert seen.names == ["Own"]
    assert torch.equal(seen[0].dense(), wanted.dense())
    assert torch.equal(chosen[0].dense(), wanted.dense()[:, [2, 1]])


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.filterwarnings("ignore::regard.recording.UnseenAttention")
@pytest.mark.parametrize("before", [True, False])
def test_compiled_parts_are_seen_or_told_of(before):
    torch._dynamo.reset()
    model = nn.ModuleDict({"own": Block(Attend()), "good": Block(Attend())})
    x = torch.randn(1, 5, 8)
    alone = model["own"](x)
    model["own"].compile(backend="eager")
    if before:
        model["own"](x)
    with watch(model) as seen:
        assert torch.equal(model["own"](x), alone)
        model["good"](x)
    assert seen.names[-1] == "good.attend"
    told = seen.unseen == ["own (Block): torch.compile hides what is in it"]
    assert told or len(seen) == 2


class Turned(nn.MultiheadAttention):
    """A subclass that attends in its own way."""

    def forward(self, query, key, value, **kwargs):
        split = (*query.shape[:2], self.num_heads, -1)
        query, key, value = (a.reshape(split).transpose(1, 2) for a in (-query, key, value))
        return renamed(query, key, value).transpose(1, 2).flatten(2), None


class OwnBlock(nn.TransformerEncoderLayer):
    """A subclass that does not call its self_attn."""

    def _sa_block(self, x, *args, **kwargs):
        return renamed(x[:, None], x[:, None], x[:, None])[:, 0]


def encoder(layer, attention=None):
    torch.manual_seed(0)
    layer = layer(8, 2, 16, 0.0, batch_first=True)
    layer.self_attn = attention or layer.self_attn
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


@pytest.mark.parametrize("fast", [True, False])
def test_a_subclass_of_multihead_attention_in_an_encoder(fast):
    model = encoder(nn.TransformerEncoderLayer, Turned(8, 2, batch_first=True)).eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad(), fast_paths(fast):
        alone = model(x)
        with watch(model) as seen:
            watched = model(x)
    assert torch.equal(alone, watched)
    assert seen.names == ["layers.0.self_attn"]
    split = (*x.shape[:2], 2, 4)
    query, key = (a.reshape(split).transpose(1, 2) for a in (-x, x))
    if fast:  # PyTorch's fast path does not ask the subclass
        attention = model.layers[0].self_attn
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        query, key = (
            functional.linear(x, weights[n], biases[n]).reshape(split).transpose(1, 2)
            for n in (0, 1)
        )
    assert (seen[0].dense() - reference(query, key)).abs().max() <= 1e-6
    assert nothing_hooked()


def test_a_layer_that_attends_in_its_own_way_is_told_of():
    model, x = encoder(OwnBlock).eval(), torch.randn(3, 5, 8)
    with torch.no_grad(), fast_paths(False):
        alone = model(x)
        with pytest.warns(UnseenAttention, match="OwnBlock attends in a way"), watch(model) as seen:
            watched = model(x)
    assert torch.equal(alone, watched)
    assert len(seen) == 0
