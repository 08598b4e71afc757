"""Watching torch.nn's own attention modules, on their fast paths and off them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as renamed

from attending import BIAS, fast_paths, nothing_hooked, reference
from regard.recording import UnseenAttention, watch


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
