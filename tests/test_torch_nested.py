"""PyTorch's nested tensors: every sequence attends as it does alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import regard
from regard.errors import ArrayTypeError, OptionError, ShapeError
from regard.torch import scaled_dot_product_attention

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

QUERIES, KEYS = [3, 5, 1, 4], [4, 2, 6, 4]


def nest(lengths, heads=2, size=4, seed=0):
    """Sequences (length, H, size), and the nested tensor (B, H, lengths, size) of them."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, heads, size, generator=generator).requires_grad_() for n in lengths]
    return parts, torch.nested.as_nested_tensor(parts, layout=torch.jagged).transpose(1, 2)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("keys", [QUERIES, KEYS], ids=["self", "cross"])
def test_values_and_gradients(keys, is_causal):
    parts, nested = zip(nest(QUERIES), nest(keys, seed=1), nest(keys, size=3, seed=2), strict=True)
    options = {"is_causal": is_causal, "scale": 0.7}
    output = scaled_dot_product_attention(*nested, **options)
    alone = [
        functional.scaled_dot_product_attention(*(a.transpose(0, 1) for a in one), **options)
        for one in zip(*parts, strict=True)
    ]
    for found, expected in zip(output.unbind(), alone, strict=True):
        torch.testing.assert_close(found, expected)
    learned = [a for sequences in parts for a in sequences]
    wanted = torch.autograd.grad(sum(a.square().sum() for a in alone), learned)
    torch.testing.assert_close(torch.autograd.grad(output.values().square().sum(), learned), wanted)


def test_the_result_goes_on_with_what_is_nested_alike():
    _, query = nest(QUERIES, size=4)
    output = scaled_dot_product_attention(query, query, query)
    assert (output + query).shape == query.shape


def test_sequences_with_gaps_between_them():
    values = torch.randn(2, 12, 4, dtype=torch.float64)
    offsets, lengths = torch.tensor([0, 5, 9, 12]), torch.tensor([3, 4, 1])
    query = torch.nested.nested_tensor_from_jagged(values, offsets, lengths, jagged_dim=2)
    broken = values.clone()
    broken[:, [3, 4, 10, 11]] = torch.nan
    broken = torch.nested.nested_tensor_from_jagged(broken, offsets, lengths, jagged_dim=2)
    output = scaled_dot_product_attention(query, broken, broken)
    for n, (start, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=False)):
        part = values[:, start : start + length]
        expected = regard.attention(part, part, part)
        torch.testing.assert_close(output.values()[:, start : start + length], expected)
        assert n < 3
    assert not output.values()[:, [3, 4, 10, 11]].any()


def test_a_model_that_is_accelerated():
    class Model(nn.Module):
        def forward(self, x):
            x = x.transpose(1, 2)
            return functional.scaled_dot_product_attention(x, x, x).transpose(1, 2)

    parts, _ = nest(QUERIES)
    nested = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    model = Model()
    with regard.accelerate(model), regard.watch(model) as seen:
        output = model(nested)
    assert len(seen) == 1
    for found, part in zip(output.unbind(), parts, strict=True):
        part = part.transpose(0, 1)
        torch.testing.assert_close(found.transpose(0, 1), regard.attention(part, part, part))


def test_what_cannot_be_is_refused():
    _, query = nest(QUERIES)
    dense = torch.randn(4, 2, 5, 4)
    with pytest.raises(ArrayTypeError, match="key of layout"):
        scaled_dot_product_attention(query, dense, dense)
    with pytest.raises(OptionError, match="attn_mask with nested tensors"):
        scaled_dot_product_attention(query, query, query, torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"transpose\(1, 2\)"):
        scaled_dot_product_attention(*[query.transpose(1, 2)] * 3)
    with pytest.raises(ShapeError, match="of 4 sequences, key of 3"):
        scaled_dot_product_attention(query, *[nest(QUERIES[:3])[1]] * 2)
    with pytest.raises(ArrayTypeError, match="are taken by"):
        regard.attention(query, query, query)
