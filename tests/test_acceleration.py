"""regard.accelerate: models compute what they did, with Regard, until that is undone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import regard
from regard.errors import ModelError
from regard.frontends import torch as front

SIZE = 32

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(SIZE, 3 * SIZE)

    def forward(self, states):
        q, k, v = self.projection(states).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        output = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return output.transpose(1, 2).flatten(-2)


def attend(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v)


class ByAFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(SIZE, 3 * SIZE)

    def forward(self, states):
        q, k, v = self.projection(states).chunk(3, dim=-1)
        return attend(q, k, v)


def hugging_face(name):
    hf = pytest.importorskip("transformers")
    small = {"hidden_size": SIZE, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "bert":
        return hf.BertModel(hf.BertConfig(**small, vocab_size=50, intermediate_size=48))
    if name == "gpt2":
        return hf.GPT2Model(hf.GPT2Config(n_embd=SIZE, n_layer=2, n_head=4, vocab_size=50))
    return hf.LlamaModel(
        hf.LlamaConfig(**small, vocab_size=50, intermediate_size=48, num_key_value_heads=2)
    )


def encoder():
    layer = nn.TransformerEncoderLayer(SIZE, 4, 48, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


MODELS = {
    "own": lambda: nn.Sequential(OwnAttention(), nn.Linear(SIZE, SIZE), OwnAttention()),
    "by a function": ByAFunction,
    "encoder": encoder,
    "bert": lambda: hugging_face("bert"),
    "gpt2": lambda: hugging_face("gpt2"),
    "llama": lambda: hugging_face("llama"),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def run(model):
    generator = torch.Generator().manual_seed(0)
    if hasattr(model, "config"):
        return model(torch.randint(50, (2, 9), generator=generator)).last_hidden_state
    padding = torch.arange(9) >= torch.tensor([9, 6])[:, None]
    options = {"src_key_padding_mask": padding} if isinstance(model, nn.TransformerEncoder) else {}
    return model(torch.randn(2, 9, SIZE, generator=generator), **options)[:, :6]


@pytest.fixture
def ours(monkeypatch):
    """How often Regard computed attention."""
    calls, original = [], front.attention
    monkeypatch.setattr(front, "signature", lambda *_: None)
    monkeypatch.setattr(front, "attention", lambda *a: calls.append(a) or original(*a))
    return calls


@pytest.mark.parametrize("training", [False, True])
def test_a_model_computes_what_it_did(model, ours, training):
    results = []
    with torch.set_grad_enabled(training):
        for accelerated in (False, True):
            if accelerated:
                assert not ours
                handle = regard.accelerate(model)
            output = run(model)
            gradients = ()
            if training:
                learned = list(model.parameters())
                loss = output.square().sum()
                gradients = torch.autograd.grad(loss, learned, allow_unused=True)
            results.append((output, [g for g in gradients if g is not None]))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    count = len(ours)
    assert count == (1 if isinstance(model, ByAFunction) else 2)
    handle.undo()
    assert torch.equal(run(model), run(model)) and len(ours) == count
    torch.testing.assert_close(run(model), results[0][0], rtol=1e-4, atol=1e-5)


def test_it_says_what_it_changed_and_a_with_block_undoes_it(model):
    before = copy.deepcopy(model)
    state = [dict(m.__dict__) for m in model.modules()]
    with regard.accelerate(model) as handle:
        assert "→" in repr(handle) and "regard" in repr(handle)
        with pytest.raises(ModelError, match="already"):
            regard.accelerate(model)
    assert "as it did before" in repr(handle)
    assert [dict(m.__dict__) for m in model.modules()] == state
    assert torch.equal(run(before), run(model))


def test_under_autocast(model):
    if isinstance(model, nn.TransformerEncoder):
        pytest.skip("PyTorch's fast path fails there by itself")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        before = run(model)
        with regard.accelerate(model):
            after = run(model)
    torch.testing.assert_close(after.float(), before.float(), rtol=5e-2, atol=5e-2)


def test_a_copy_attends_by_itself(model, ours):
    regard.accelerate(model)
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert run(copied).abs().sum() > 0 and ours


def test_a_watch_sees_the_same_calls(model):
    with regard.watch(model) as before:
        run(model)
    with regard.accelerate(model), regard.watch(model) as seen:
        run(model)
    assert len(seen) == len(before) > 0


def test_a_model_without_attention_is_refused():
    with pytest.raises(ModelError, match="no attention"):
        regard.accelerate(nn.Linear(2, 2))


def test_arguments_by_name_and_models_that_are_none():
    class Named(nn.Module):
        def forward(self, x):
            return functional.scaled_dot_product_attention(query=x, key=x, value=x)

    module, x = Named(), torch.randn(1, 2, 5, 8)
    wanted = module(x)
    with regard.accelerate(module):
        torch.testing.assert_close(module(x), wanted)
    with pytest.raises(ModelError, match="a model of type int"):
        regard.accelerate(5)
