"""regard.layers.MultiHeadAttention against nn.MultiheadAttention, and what that has not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import regard
from regard.errors import OptionError, ShapeError
from regard.layers import (
    Alibi,
    KeyValueCache,
    LearnedPositions,
    MultiHeadAttention,
    RelativePositions,
    Rotary,
    SinusoidalPositions,
)

B, L, S, H, SIZE = 3, 5, 7, 4, 32
HIDDEN = torch.arange(L * S).reshape(L, S) % 3 == 1
PADDING = torch.arange(S) >= torch.tensor([7, 4, 2])[:, None]


def pair(key_width=None, bias=True):
    """Our layer and PyTorch's with the same parameters."""
    torch.manual_seed(0)
    ours = MultiHeadAttention(SIZE, H, key_width=key_width, bias=bias)
    theirs = nn.MultiheadAttention(
        SIZE, H, kdim=key_width, vdim=key_width, bias=bias, batch_first=True
    )
    copy_attention(ours, theirs)
    return ours, theirs


def copy_attention(ours, theirs):
    """Give PyTorch's module the parameters of ours."""
    parts = ours.query, ours.key, ours.value
    with torch.no_grad():
        if theirs.in_proj_weight is None:
            named = theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight
            for to, part in zip(named, parts, strict=True):
                to.copy_(part.weight)
        else:
            theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        if theirs.in_proj_bias is not None:
            nn.init.normal_(ours.output.bias)
            theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            theirs.out_proj.bias.copy_(ours.output.bias)


def gradients(output, *inputs):
    return torch.autograd.grad(output.square().sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "masks",
    [
        ({}, {}),
        ({"mask": ~HIDDEN}, {"attn_mask": HIDDEN}),
        ({"mask": regard.keys(~PADDING)}, {"key_padding_mask": PADDING}),
        ({"bias": HIDDEN * -2.0}, {"attn_mask": HIDDEN * -2.0}),
    ],
    ids=["all", "hidden", "padding", "added"],
)
def test_cross_attention_is_pytorchs(masks, bias):
    ours, theirs = pair(key_width=6, bias=bias)
    query = torch.randn(B, L, SIZE, requires_grad=True)
    key = torch.randn(B, S, 6, requires_grad=True)
    output = ours(query, key, **masks[0])
    expected, _ = theirs(query, key, key, **masks[1])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradients(output, query, key, ours.key.weight, ours.output.weight),
        gradients(expected, query, key, theirs.k_proj_weight, theirs.out_proj.weight),
        rtol=1e-4,
        atol=1e-4,
    )


def test_causal_self_attention_is_pytorchs():
    ours, theirs = pair()
    x = torch.randn(B, L, SIZE)
    hidden = nn.Transformer.generate_square_subsequent_mask(L)
    expected, weights = theirs(x, x, x, attn_mask=hidden, average_attn_weights=False)
    output, seen = ours(x, mask=regard.causal(), return_weights=True)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.dense(), weights, rtol=1e-4, atol=1e-5)
    assert seen.shape == (B, H, L, L)


def test_few_key_heads_are_many_with_the_same_parameters():
    torch.manual_seed(0)
    few = MultiHeadAttention(SIZE, H, key_heads=2, head_size=6)
    many = MultiHeadAttention(SIZE, H, head_size=6)
    with torch.no_grad():
        for name in ("query", "output"):
            getattr(many, name).load_state_dict(getattr(few, name).state_dict())
        for name in ("key", "value"):
            for to, held in zip(
                getattr(many, name).parameters(), getattr(few, name).parameters(), strict=True
            ):
                to.copy_(held.unflatten(0, (2, 6)).repeat_interleave(2, 0).flatten(0, 1))
    x = torch.randn(B, L, SIZE)
    torch.testing.assert_close(few(x), many(x), rtol=1e-4, atol=1e-5)


def test_values_may_be_others_than_keys():
    ours, theirs = pair()
    x, y, z = (torch.randn(B, length, SIZE) for length in (L, S, S))
    torch.testing.assert_close(ours(x, y, z), theirs(x, y, z)[0], rtol=1e-4, atol=1e-5)


POSITIONS = {
    "none": {},
    "rotary": {"rotary": True},
    "alibi": {"position_bias": Alibi},
    "relative": {"position_bias": RelativePositions},
}


def layer_with(rotary=False, position_bias=None, **options):
    torch.manual_seed(0)
    made = None if position_bias is None else position_bias(H)
    if isinstance(made, RelativePositions):
        nn.init.normal_(made.table.weight)
    turned = Rotary(SIZE // H) if rotary else None
    return MultiHeadAttention(SIZE, H, rotary=turned, position_bias=made, **options)


@pytest.mark.parametrize("options", POSITIONS.values(), ids=POSITIONS)
def test_a_cache_gives_what_the_whole_gives(options):
    layer = layer_with(**options, key_heads=2)
    x, mask = torch.randn(B, 9, SIZE), regard.causal("lower_right")
    whole = layer(x, mask=mask)
    for grad in (torch.no_grad, torch.enable_grad):
        cache, parts = KeyValueCache(), []
        with grad():
            for part in x.split([4, 1, 1, 3], dim=1):
                parts.append(layer(part, mask=mask, cache=cache))
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
        assert len(cache) == 9


def test_gradients_through_a_cache_are_those_of_the_whole():
    layer = layer_with(rotary=True)
    x, mask = torch.randn(B, 6, SIZE, requires_grad=True), regard.causal("lower_right")
    cache = KeyValueCache()
    parts = [layer(part, mask=mask, cache=cache) for part in x.split(2, dim=1)]
    expected = gradients(layer(x, mask=mask), x, layer.key.weight)
    found = gradients(torch.cat(parts, 1), x, layer.key.weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_memory_can_be_projected_once():
    ours, _ = pair(key_width=6)
    x, memory = torch.randn(B, L, SIZE), torch.randn(B, S, 6)
    held = ours.project(memory)
    torch.testing.assert_close(ours(x, held), ours(x, memory), rtol=0, atol=0)
    assert len(held) == S  # and it did not grow


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_scores_depend_on_distance_alone(interleaved):
    rotary = Rotary(16, interleaved=interleaved)
    query, key = (torch.randn(1, 1, 1, 16, dtype=torch.float64) for _ in range(2))
    query, key = (x.expand(1, 12, 1, 16) for x in (query, key))
    scores = (rotary(query)[0, :, 0] @ rotary(key, start=700)[0, :, 0].T).double()
    for offset in range(-11, 12):
        along = scores.diagonal(offset)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    assert (scores[0, 0] - scores[0, 5]).abs() > 1e-2


def test_rotary_is_that_of_transformers():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    x = torch.randn(2, 9, 3, 16)
    angles = torch.arange(4, 13)[:, None] * 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    angles = torch.cat([angles, angles], dim=-1)[None]
    expected, _ = llama.apply_rotary_pos_emb(x, x, angles.cos(), angles.sin(), unsqueeze_dim=2)
    torch.testing.assert_close(Rotary(16)(x, start=4), expected, rtol=1e-5, atol=1e-5)
    order = torch.arange(16).reshape(2, 8).T.flatten()  # pairs (i, i + 8) side by side
    torch.testing.assert_close(
        Rotary(16, interleaved=True)(x[..., order], start=4), expected[..., order]
    )


def test_rotary_tables_grow_and_outlive_inference_mode():
    rotary = Rotary(8)
    x = torch.randn(1, 2000, 1, 8)
    with torch.inference_mode():
        whole = rotary(x)
    torch.testing.assert_close(rotary(x[:, 1990:], start=1990), whole[:, 1990:].clone())
    rotary(x.requires_grad_()).sum().backward()
    assert rotary(x.half()).dtype == torch.float16


@pytest.mark.parametrize("heads", [4, 6, 12])
def test_alibi_has_the_slopes_of_its_authors(heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    tensor = bloom.build_alibi_tensor(torch.ones(1, 9), heads, torch.float32)
    expected = tensor.reshape(heads, 1, 9)
    found = Alibi(heads)(9, 9)
    # Theirs counts from the first key: for each query the two differ by a number.
    seen = torch.ones(9, 9).tril().bool()
    difference = (found - expected).masked_fill(~seen, 0)
    torch.testing.assert_close(difference, difference[:, :, :1] * seen)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_positions_are_t5s(bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    ours = RelativePositions(H, ranges=16, furthest=40, bidirectional=bidirectional)
    nn.init.normal_(ours.table.weight)
    config = t5.T5Config(
        num_heads=H, relative_attention_num_buckets=16, relative_attention_max_distance=40
    )
    config.is_decoder = not bidirectional
    theirs = t5.T5Attention(config, has_relative_attention_bias=True)
    theirs.relative_attention_bias.load_state_dict(ours.table.state_dict())
    torch.testing.assert_close(ours(90, 90), theirs.compute_bias(90, 90)[0])
    torch.testing.assert_close(ours(1, 90), ours(90, 90)[:, -1:])


def test_sinusoidal_positions_by_the_formula():
    x = torch.zeros(1, 4, 6, dtype=torch.float64)
    found = SinusoidalPositions(6)(x, start=3)[0]
    for t in range(3, 7):
        for i in range(3):
            angle = torch.tensor(t / 10_000 ** (2 * i / 6), dtype=torch.float64)
            torch.testing.assert_close(found[t - 3, 2 * i], angle.sin(), rtol=0, atol=1e-7)
            torch.testing.assert_close(found[t - 3, 2 * i + 1], angle.cos(), rtol=0, atol=1e-7)


def test_learned_positions_end():
    positions = LearnedPositions(6, longest=4)
    x = torch.zeros(1, 2, 6)
    torch.testing.assert_close(positions(x, start=2)[0], positions.table[2:])
    with pytest.raises(ShapeError, match=r"5 positions\. Wanted: at most 4"):
        positions(x, start=3)


def test_dropout_in_training_alone_and_not_in_the_weights():
    layer = MultiHeadAttention(SIZE, H, dropout=0.5)
    x = torch.randn(B, L, SIZE)
    (first, seen), (second, again) = (layer(x, return_weights=True) for _ in range(2))
    assert not torch.equal(first, second)
    torch.testing.assert_close(seen.dense(), again.dense())
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_bfloat16_by_autocast():
    layer = layer_with(rotary=True)
    x = torch.randn(B, L, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        output, seen = layer(x, return_weights=True)
    assert output.dtype == torch.bfloat16
    assert "bfloat16" in repr(seen)
    torch.testing.assert_close(output.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", POSITIONS.values(), ids=POSITIONS)
def test_compiled_in_one_graph(options):
    layer = layer_with(**options)
    x = torch.randn(B, L, SIZE, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    output, expected = compiled(x, mask=regard.causal()), layer(x, mask=regard.causal())
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(output, x), gradients(expected, x), rtol=1e-4, atol=1e-4)


def test_copies_and_state_dicts():
    layer = layer_with(position_bias=RelativePositions, rotary=True)
    x = torch.randn(B, L, SIZE)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    other = layer_with(position_bias=RelativePositions, rotary=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)


def test_watch_sees_it():
    layer = nn.Sequential(layer_with(key_heads=2))
    x = torch.randn(B, L, SIZE)
    _, expected = layer[0](x, return_weights=True)
    with regard.watch(layer) as seen, torch.no_grad():
        layer(x)
    assert [weights.name for weights in seen] == ["0"]
    torch.testing.assert_close(seen[0].dense(), expected.dense())


def test_sizes_that_do_not_fit():
    with pytest.raises(OptionError, match="width=10, heads=4"):
        MultiHeadAttention(10, 4)
    with pytest.raises(OptionError, match="key_heads=3"):
        MultiHeadAttention(16, 4, key_heads=3)
    with pytest.raises(OptionError, match="size=7"):
        Rotary(7)
    with pytest.raises(OptionError, match="ranges=2"):
        RelativePositions(4, ranges=2)
