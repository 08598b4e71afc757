"""Models of transformers compute with Regard what they compute with PyTorch's attention."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import regard.huggingface
from regard.errors import OptionError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
LLAMA = hf.LlamaConfig(**SMALL, num_key_value_heads=2, intermediate_size=48)
MISTRAL = hf.MistralConfig(**SMALL, num_key_value_heads=2, intermediate_size=48, sliding_window=4)
MODELS = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**SMALL, intermediate_size=48)),
    "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50)),
    "llama": lambda: hf.LlamaModel(LLAMA),
    "mistral, a sliding window": lambda: hf.MistralModel(MISTRAL),
}
PADDING = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


def both(model, **inputs):
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    for name in ("regard", "sdpa"):
        model.set_attn_implementation(name)
        yield model(tokens, **inputs).last_hidden_state


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_outputs(model, padding):
    ours, theirs = both(model, attention_mask=padding)
    seen = slice(None) if padding is None else padding.bool()
    torch.testing.assert_close(ours[seen], theirs[seen], rtol=1e-4, atol=1e-5)


def test_gradients(model):
    gradients = []
    for output in both(model, attention_mask=PADDING):
        model.zero_grad()
        output[PADDING.bool()].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_a_cache_goes_on_where_it_stopped():
    model = MODELS["llama"]().eval()
    model.set_attn_implementation("regard")
    tokens = torch.randint(50, (2, 9))
    whole = model(tokens).last_hidden_state
    first = model(tokens[:, :5], use_cache=True)
    for part in (slice(5, 8), slice(8, 9)):
        first = model(tokens[:, part], past_key_values=first.past_key_values, use_cache=True)
        torch.testing.assert_close(first.last_hidden_state, whole[:, part], rtol=1e-4, atol=1e-5)


def test_biases_sinks_and_softcap_reach_the_scores():
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    position, added, sinks = torch.randn(1, 2, 5, 5), torch.randn(1, 1, 5, 5), torch.randn(2)
    module = torch.nn.Identity()
    module.is_causal = False
    options = {"softcap": 3.0, "s_aux": sinks, "position_bias": position, "scaling": 0.3}
    output, weights = regard.huggingface.attention(module, q, k, v, added, **options)
    assert weights is None and output.shape == (1, 5, 2, 8)
    expected = regard.attention(q, k, v, bias=position + added, scale=0.3, softcap=3.0, sinks=sinks)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_without_a_mask_causal_is_from_the_upper_left_as_in_transformers():
    q, k, v = (torch.randn(1, 2, n, 8) for n in (3, 5, 5))
    module = torch.nn.Identity()
    module.is_causal = True
    ours, _ = regard.huggingface.attention(module, q, k, v, None)
    torch.testing.assert_close(
        ours.transpose(1, 2), regard.attention(q, k, v, mask=regard.causal("upper_left"))
    )
    for inputs, options in (((q, k, v), {"is_causal": False}), ((q[:, :, :1], k, v), {})):
        ours, _ = regard.huggingface.attention(module, *inputs, None, **options)
        torch.testing.assert_close(ours.transpose(1, 2), regard.attention(*inputs))


def test_a_paged_cache_is_refused():
    q = torch.randn(1, 2, 5, 8)
    with pytest.raises(OptionError, match="paged"):
        regard.huggingface.attention(torch.nn.Identity(), q, q, q, None, cache=object())


def test_what_is_not_known_is_said():
    q = torch.randn(1, 2, 5, 8)
    module = torch.nn.Identity()
    with pytest.warns(UserWarning, match="given logit_bend=…, which it does not know"):
        regard.huggingface.attention(module, q, q, q, None, logit_bend=3.0)
    for name in ("block_indices", "sinks"):
        with pytest.raises(OptionError, match=f"{name}=….*eager"):
            regard.huggingface.attention(module, q, q, q, None, **{name: q})
    regard.huggingface.attention(module, q, q, q, None, use_cache=True, logit_bend=None)


def call(lengths, attention_mask=None, **options):
    """(what our function gives, q, k, v) for a module that is causal."""
    q, k, v = (torch.randn(1, 2, n, 8) for n in (lengths[0], lengths[1], lengths[1]))
    module = torch.nn.Identity()
    output, _ = regard.huggingface.attention(module, q, k, v, attention_mask, **options)
    return output.transpose(1, 2), q, k, v


def test_a_window_without_a_mask():
    for lengths, options, mask in (
        ((6, 6), {}, regard.window(2, 0)),
        ((6, 6), {"is_causal": False}, regard.window(2, 2)),
        ((1, 6), {}, regard.window(2, 0, "lower_right")),
        ((4, 6), {}, regard.window(2, 0, "upper_left")),
    ):
        found, *given = call(lengths, sliding_window=3, **options)
        torch.testing.assert_close(found, regard.attention(*given, mask=mask))


def test_sequences_told_by_where_they_begin():
    starts, key_starts = torch.tensor([0, 2, 5]), torch.tensor([0, 4, 6])
    found, *given = call((5, 5), cu_seq_lens_q=starts, cu_seq_lens_k=starts.clone())
    alone = regard.documents(cu_lengths=starts)
    torch.testing.assert_close(found, regard.attention(*given, mask=regard.causal() & alone))
    told = {"cu_seq_lens_q": starts, "cu_seq_lens_k": key_starts}
    found, *given = call((5, 6), is_causal=False, **told)
    ids, key_ids = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[0, 0, 0, 0, 1, 1]])
    expected = regard.attention(*given, mask=regard.documents(ids, key_ids))
    torch.testing.assert_close(found, expected)
    with pytest.raises(OptionError, match="that differ, causal"):
        call((5, 6), **told)


def test_keys_that_a_model_chooses():
    chosen = torch.tensor([[[0, 3], [2, 2], [5, 1]]])
    seen = torch.zeros(1, 1, 3, 6, dtype=torch.bool).scatter(-1, chosen[:, None], True)
    hidden = torch.ones(1, 1, 3, 6, dtype=torch.bool)
    hidden[..., 3] = False
    found, *given = call((3, 6), hidden, indices=chosen)
    torch.testing.assert_close(found, regard.attention(*given, mask=seen & hidden))


def test_autocast_makes_types_alike_as_for_sdpa():
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = regard.huggingface.attention(torch.nn.Identity(), q, k, v.bfloat16(), None)
    assert output.dtype == torch.bfloat16
