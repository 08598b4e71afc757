"""PyTorch's own attention functions, computed by Regard: against PyTorch, option by option."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from regard.errors import DtypeError, ShapeError
from regard.torch import scaled_dot_product_attention

HIDDEN = torch.arange(35).reshape(5, 7) % 3 > 0
HIDDEN[2] = False  # a query that sees nothing
SHAPES = {
    "plain": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)),
    "values of another size": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3)),
    "three dimensions": ((3, 5, 8), (3, 7, 8), (3, 7, 8)),
    "two dimensions": ((5, 8), (7, 8), (7, 6)),
    "five dimensions": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)),
    "shared keys": ((2, 4, 5, 8), (1, 1, 7, 8), (4, 7, 8)),
    "shared queries": ((5, 8), (2, 4, 7, 8), (2, 4, 7, 8)),
    "no keys": ((2, 4, 5, 8), (2, 4, 0, 8), (2, 4, 0, 8)),
}
OPTIONS = {
    "none": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.7},
    "boolean mask": {"attn_mask": HIDDEN},
    "added mask": {"attn_mask": torch.zeros(5, 7).masked_fill(~HIDDEN, -torch.inf)},
    "upper left": {"attn_mask": causal_upper_left(5, 7)},
    "lower right": {"attn_mask": causal_lower_right(5, 7)},
}


def tensors(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def compare(inputs, options, near=1e-5):
    results = []
    for function in (scaled_dot_product_attention, functional.scaled_dot_product_attention):
        output = function(*inputs, **options)
        learned = [t for t in (*inputs, options.get("attn_mask")) if getattr(t, "requires_grad", 0)]
        results.append((output, *torch.autograd.grad(output.square().sum(), learned)))
    torch.testing.assert_close(*results, rtol=10 * near, atol=near)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(shapes, options):
    mask = options.get("attn_mask")
    if mask is not None and not shapes[1][-2]:
        mask = None if "causal" in type(mask).__name__.lower() else mask[:, :0]
        options = {"attn_mask": mask}
    if min(map(len, shapes)) < 4 and "Causal" in type(mask).__name__:
        pytest.skip("PyTorch's causal biases want four dimensions")
    compare(tensors(shapes), options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype):
    near = 1e-12 if dtype == torch.float64 else 2e-2
    compare(tensors(SHAPES["plain"], dtype), {"is_causal": True}, near)


def test_fewer_heads_of_keys():
    inputs = tensors(((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)))
    compare(inputs, {"enable_gqa": True, "attn_mask": HIDDEN})
    with pytest.raises(ShapeError, match="enable_gqa=True"):
        scaled_dot_product_attention(*inputs)


@pytest.mark.parametrize("shape", [(5, 7), (4, 1, 7), (2, 1, 5, 7), (2, 4, 5, 7)])
def test_the_gradient_of_a_learned_mask(shape):
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    compare(tensors(SHAPES["plain"]), {"attn_mask": mask})


def test_a_mask_and_causal_together():
    inputs = tensors(SHAPES["plain"])
    both = HIDDEN & torch.ones(5, 7, dtype=torch.bool).tril()
    for mask in (HIDDEN, torch.zeros(5, 7).masked_fill(~HIDDEN, -torch.inf)):
        output = scaled_dot_product_attention(*inputs, attn_mask=mask, is_causal=True)
        expected = functional.scaled_dot_product_attention(*inputs, attn_mask=both)
        torch.testing.assert_close(output, expected)


def test_dropout_comes_from_torchs_generator_and_keeps_the_mean():
    query, key, _ = tensors(SHAPES["plain"])
    ones = torch.ones(2, 4, 7, 6)
    torch.manual_seed(0)
    first, second = (
        scaled_dot_product_attention(query, key, ones, dropout_p=0.4) for _ in range(2)
    )
    torch.manual_seed(0)
    again = scaled_dot_product_attention(query, key, ones, dropout_p=0.4)
    assert torch.equal(first, again) and not torch.equal(first, second)
    many = [scaled_dot_product_attention(query, key, ones, dropout_p=0.4) for _ in range(200)]
    assert abs(torch.stack(many).mean().item() - 1) < 0.02


def test_autocast_converts_as_it_does_for_pytorch():
    inputs = tensors(SHAPES["plain"])
    mask = torch.zeros(5, 7).masked_fill(~HIDDEN, -torch.inf)
    with torch.autocast("cpu", torch.bfloat16):
        for options in ({}, {"attn_mask": mask}):
            ours = scaled_dot_product_attention(*inputs, **options)
            theirs = functional.scaled_dot_product_attention(*inputs, **options)
            assert ours.dtype == theirs.dtype == torch.bfloat16
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_a_mask_of_another_type_is_refused():
    with pytest.raises(DtypeError):
        scaled_dot_product_attention(*tensors(SHAPES["plain"]), attn_mask=HIDDEN.double())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pytorchs_own_samples(dtype):
    pytest.importorskip("expecttest", reason="PyTorch's own tests need it")
    from torch.testing._internal import common_methods_invocations as own

    samples = list(own.sample_inputs_scaled_dot_product_attention(None, "cpu", dtype, True))
    assert len(samples) > 20
    for sample in samples:
        inputs, options = (sample.input, *sample.args), sample.kwargs
        learned = [a for a in inputs if a.requires_grad]
        results = []
        for function in (scaled_dot_product_attention, functional.scaled_dot_product_attention):
            output = function(*inputs, **options)
            gradients = torch.autograd.grad(output.sum(), learned)
            results.append((output, *gradients))
        if options.get("dropout_p"):  # other weights are dropped
            assert results[0][0].shape == results[1][0].shape
        else:
            near = 1e-3 if dtype == torch.float32 else 1e-9  # scores reach 200 and more
            torch.testing.assert_close(*results, rtol=near, atol=near)
