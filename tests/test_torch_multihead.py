"""regard.torch.MultiheadAttention against nn.MultiheadAttention, option by option."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.errors import DtypeError, OptionError
from regard.torch import MultiheadAttention

B, L, S, H, SIZE = 3, 5, 7, 4, 16
HIDDEN = torch.arange(L * S).reshape(L, S) % 3 == 1
PADDING = torch.arange(S) >= torch.tensor([7, 4, 2])[:, None]
EACH = (torch.arange(B * H * L * S).reshape(B * H, L, S) % 5) == 2
MODULES = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 6, "vdim": 10},
    "surplus keys": {"add_bias_kv": True, "add_zero_attn": True},
}
MASKS = {
    "none": {},
    "hidden": {"attn_mask": HIDDEN},
    "padding": {"key_padding_mask": PADDING},
    "both": {"attn_mask": HIDDEN, "key_padding_mask": PADDING},
    "each head": {"attn_mask": EACH},
    "added": {
        "attn_mask": torch.zeros(L, S).masked_fill(HIDDEN, -torch.inf),
        "key_padding_mask": torch.zeros(B, S).masked_fill(PADDING, -3.0),
    },
}


def pair(**options):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(SIZE, H, **options)
    ours = MultiheadAttention(SIZE, H, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(module, batched=True):
    sizes = (L, SIZE), (S, module.kdim), (S, module.vdim)
    lead = (B,) if batched else ()
    tensors = [torch.randn(*lead, *size) for size in sizes]
    if batched and not module.batch_first:
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    return [tensor.requires_grad_() for tensor in tensors]


def compare(ours, theirs, tensors, **options):
    results = []
    for module in (ours, theirs):
        output, weights = module(*tensors, **options)
        loss = output.square().sum() + (0 if weights is None else weights.square().sum())
        parameters = [p for _, p in sorted(module.named_parameters())]
        learned = list(dict.fromkeys((*tensors, *parameters)))
        gradients = torch.autograd.grad(loss, learned)
        with torch.no_grad():
            seen = module.eval()(*tensors, **options)
        results.append((output, weights, seen, gradients))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", MODULES.values(), ids=MODULES)
def test_values_and_gradients(options, masks, need_weights):
    ours, theirs = pair(**options)
    compare(ours, theirs, inputs(ours), need_weights=need_weights, **masks)


def test_weights_of_each_head():
    ours, theirs = pair()
    compare(ours, theirs, inputs(ours), average_attn_weights=False)


@pytest.mark.parametrize("masks", [{}, {"attn_mask": HIDDEN, "key_padding_mask": PADDING[1]}])
def test_without_a_batch(masks):
    ours, theirs = pair()
    compare(ours, theirs, inputs(ours, batched=False), **masks)


@pytest.mark.parametrize("need_weights", [False, True])
def test_self_attention_that_is_causal(need_weights):
    ours, theirs = pair(batch_first=True)
    states = inputs(ours)[0]
    hidden = nn.Transformer.generate_square_subsequent_mask(L)
    options = {"attn_mask": hidden, "is_causal": True, "need_weights": need_weights}
    compare(ours, theirs, [states] * 3, **options)
    with pytest.raises(OptionError, match="is_causal"):
        ours(states, states, states, is_causal=True)


def test_what_sees_nothing_gets_the_projection_of_zero():
    ours, _ = pair()
    output, weights = ours(*inputs(ours), attn_mask=torch.ones(L, S, dtype=torch.bool))
    torch.testing.assert_close(output, ours.out_proj.bias.expand_as(output))
    assert not weights.any()


def test_dropout_in_training_alone():
    ours, _ = pair(dropout=0.5)
    tensors = inputs(ours)
    first, second = (ours(*tensors)[0] for _ in range(2))
    assert not torch.equal(first, second)
    ours.eval()
    assert torch.equal(ours(*tensors)[0], ours(*tensors)[0])


@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_integers_are_no_masks(name):
    module = MultiheadAttention(SIZE, H)
    x = torch.randn(L, B, SIZE)
    shape = (L, L) if name == "attn_mask" else (B, L)
    with pytest.raises(DtypeError, match=f"{name} of type torch.int64.*booleans"):
        module(x, x, x, **{name: torch.ones(shape, dtype=torch.int64)})
