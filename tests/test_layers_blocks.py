"""Blocks and stacks against torch.nn's transformer layers with the same parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import regard
from regard.errors import OptionError
from regard.layers import (
    Decoder,
    DecoderBlock,
    Encoder,
    EncoderBlock,
    FeedForward,
    KeyValueCache,
    RelativePositions,
    Rotary,
)
from test_layers_multihead import copy_attention

B, L, S, H, SIZE, INNER = 2, 5, 7, 4, 16, 24
LENGTHS = torch.tensor([7, 3])
PADDING = torch.arange(S) >= LENGTHS[:, None]
CAUSAL = regard.causal("lower_right")


def like(block, activation):
    """PyTorch's layer with the block's parameters."""
    kind = nn.TransformerDecoderLayer if isinstance(block, DecoderBlock) else None
    theirs = (kind or nn.TransformerEncoderLayer)(
        SIZE,
        H,
        INNER,
        dropout=0.0,
        activation=activation,
        batch_first=True,
        norm_first=block.around_attention.pre,
    )
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    copy_attention(block.attention, theirs.self_attn)
    norms = [block.around_attention, block.around_feedforward]
    if kind is not None:
        copy_attention(block.cross, theirs.multihead_attn)
        norms.insert(1, block.around_cross)
    pairs = [(theirs.linear1, block.feedforward.enter), (theirs.linear2, block.feedforward.leave)]
    pairs += [(getattr(theirs, f"norm{n}"), around.norm) for n, around in enumerate(norms, 1)]
    for to, ours in pairs:
        to.load_state_dict(ours.state_dict())
    return theirs


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_encoder_block(norm, activation):
    torch.manual_seed(0)
    block = EncoderBlock(SIZE, H, feedforward=INNER, norm=norm, activation=activation, dropout=0.0)
    theirs = like(block, activation)
    x = torch.randn(B, S, SIZE, requires_grad=True)
    output = block(x, mask=regard.lengths(keys=LENGTHS))
    expected = theirs(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    compare_gradients(output, expected, x)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_decoder_block(norm):
    torch.manual_seed(0)
    block = DecoderBlock(SIZE, H, feedforward=INNER, norm=norm, dropout=0.0)
    theirs = like(block, "relu")
    x = torch.randn(B, L, SIZE, requires_grad=True)
    memory = torch.randn(B, S, SIZE, requires_grad=True)
    output, weights = block(
        x, memory, mask=CAUSAL, memory_mask=regard.lengths(keys=LENGTHS), return_weights=True
    )
    hidden = nn.Transformer.generate_square_subsequent_mask(L) < 0
    expected = theirs(x, memory, tgt_mask=hidden, memory_key_padding_mask=PADDING)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    compare_gradients(output, expected, x, memory)
    assert weights.own.shape == (B, H, L, L) and weights.cross.shape == (B, H, L, S)


def compare_gradients(output, expected, *inputs):
    found = torch.autograd.grad(output.square().sum(), inputs)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_swiglu_by_the_formula():
    torch.manual_seed(0)
    part = FeedForward(SIZE, INNER, "swiglu")
    x = torch.randn(B, L, SIZE)
    gate = functional.linear(x, part.gate.weight, part.gate.bias)
    hidden = functional.linear(x, part.enter.weight, part.enter.bias) * gate * torch.sigmoid(gate)
    torch.testing.assert_close(
        part(x), functional.linear(hidden, part.leave.weight, part.leave.bias)
    )


def test_encoder_only_stack_is_pytorchs():
    torch.manual_seed(0)
    stack = Encoder(SIZE, H, 2, feedforward=INNER, dropout=0.0)
    layers = [like(block, "relu") for block in stack.blocks]
    theirs = nn.TransformerEncoder(
        layers[0], 2, norm=nn.LayerNorm(SIZE), enable_nested_tensor=False
    )
    theirs.layers = nn.ModuleList(layers)
    x = torch.randn(B, S, SIZE)
    output, weights = stack(x, return_weights=True)
    torch.testing.assert_close(output, theirs(x), rtol=1e-4, atol=1e-5)
    assert [w.shape for w in weights] == [(B, H, S, S)] * 2


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_decoder_only_stack_with_caches(norm):
    torch.manual_seed(0)
    shared = RelativePositions(H)
    nn.init.normal_(shared.table.weight)
    stack = Encoder(
        SIZE, H, 3, norm=norm, dropout=0.0, key_heads=2, activation="swiglu",
        rotary=Rotary(SIZE // H), position_bias=shared,
    )  # fmt: skip
    x = torch.randn(B, 8, SIZE)
    whole = stack(x, mask=CAUSAL)
    caches = [KeyValueCache() for _ in stack.blocks]
    parts = [stack(part, mask=CAUSAL, caches=caches) for part in x.split([3, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    assert sum("table" in name for name, _ in stack.named_parameters()) == 1


def test_decoder_takes_a_projected_memory():
    torch.manual_seed(0)
    stack = Decoder(SIZE, H, 2, dropout=0.0)
    x, memory = torch.randn(B, L, SIZE), torch.randn(B, S, SIZE)
    output, weights = stack(x, stack.project(memory), mask=CAUSAL, return_weights=True)
    torch.testing.assert_close(output, stack(x, memory, mask=CAUSAL), rtol=0, atol=0)
    assert [w.cross.shape for w in weights] == [(B, H, L, S)] * 2


def test_dropout_of_parts_and_of_weights():
    x = torch.randn(B, S, SIZE)
    for options in ({"dropout": 0.5}, {"dropout": 0.0, "attention_dropout": 0.5}):
        block = EncoderBlock(SIZE, H, **options)
        assert not torch.equal(block(x), block(x))
        block.eval()
        assert torch.equal(block(x), block(x))


def test_options_that_are_none():
    with pytest.raises(OptionError, match="norm='both'"):
        EncoderBlock(SIZE, H, norm="both")
    with pytest.raises(OptionError, match="activation='tanh'"):
        EncoderBlock(SIZE, H, activation="tanh")
    with pytest.raises(TypeError, match="activaton"):
        Encoder(SIZE, H, 2, activaton="relu")
