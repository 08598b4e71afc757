"""Models of transformers, tiny and random, attend with Regard as they do eagerly."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf

import regard.huggingface
from problems import allowed, error

pytestmark = pytest.mark.filterwarnings("default")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
WIDE = {**SMALL, "intermediate_size": 48}
DECODER = {**WIDE, "num_key_value_heads": 2, "head_dim": 8}
SLIDING = {**DECODER, "sliding_window": 4}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GEMMA2 = {**SLIDING, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 2}
GPT_OSS = {**SLIDING, "num_local_experts": 2, "num_experts_per_tok": 1}
T5 = {"num_layers": 2, "d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 48, "vocab_size": 50}
WHISPER = {
    **{
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    },
    "d_model": 32,
    "vocab_size": 50,
    "max_source_positions": 10,
    "num_mel_bins": 8,
    **ENDS,
    "decoder_start_token_id": 1,
}
VISION = {**WIDE, "image_size": 12, "patch_size": 4}
VISION.pop("vocab_size")

# How a model is made; its text models take inputs_embeds and attention_mask.
TEXT = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**WIDE)),
    "gpt2": lambda: hf.GPT2Model(
        hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, **ENDS)
    ),
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**DECODER, **ENDS)),
    "mistral": lambda: hf.MistralModel(hf.MistralConfig(**SLIDING, **ENDS)),
    "gemma2": lambda: hf.Gemma2Model(hf.Gemma2Config(**GEMMA2, **ENDS)),
    "gpt-oss": lambda: hf.GptOssModel(hf.GptOssConfig(**GPT_OSS, **ENDS)),
}
PADDING = {
    "whole": torch.ones(2, 9, dtype=torch.long),
    "left": torch.tensor([[1] * 9, [0] * 3 + [1] * 6]),
    "right": torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
}


def made(make):
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():  # weights that differ from position to position
        if parameter.ndim > 1 or parameter.numel() == 4:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same_as_eager(model, run, *leaves):
    """That outputs and the gradients of `leaves` are those of the model's own attention: off by at
    most three times what its own are in the same type, against itself in float64."""

    def results(model, name):
        model.set_attn_implementation(name)
        kind = next(model.parameters()).dtype
        given = [leaf.to(kind, copy=True).requires_grad_() for leaf in leaves]
        outputs = run(model, *given)
        gradients = torch.autograd.grad(sum(y.square().sum() for y in outputs), given)
        return [result.detach().double().numpy() for result in (*outputs, *gradients)]

    found, plain = results(model, "regard"), results(model, "eager")
    wide = copy.deepcopy(model).double()
    wide.set_experts_implementation("eager")  # the other ways know no float64
    exact = results(wide, "eager")
    for ours, its, truth in zip(found, plain, exact, strict=True):
        assert error(ours, truth) <= allowed(error(its, truth), truth, "float32", 3)


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
@pytest.mark.parametrize("make", TEXT.values(), ids=TEXT)
def test_text(make, padding):
    def run(model, embedded):
        found = model(inputs_embeds=embedded, attention_mask=padding, output_hidden_states=True)
        return [states[padding.bool()] for states in found.hidden_states]

    same_as_eager(made(make), run, normal(2, 9, 32))


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
def test_t5(padding):
    def run(model, read, written):
        found = model(
            inputs_embeds=read,
            attention_mask=padding,
            decoder_inputs_embeds=written,
            decoder_attention_mask=padding[:, :7],
            output_hidden_states=True,
        )
        seen, said = padding.bool(), padding[:, :7].bool()
        encoded = (states[seen] for states in found.encoder_hidden_states)
        return [*encoded, *(states[said] for states in found.decoder_hidden_states)]

    model = made(lambda: hf.T5Model(hf.T5Config(**T5, decoder_start_token_id=0)))
    same_as_eager(model, run, normal(2, 9, 32), normal(2, 7, 32, seed=1))


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
def test_whisper(padding):
    def run(model, heard, written):
        found = model(
            input_features=heard,
            decoder_inputs_embeds=written,
            decoder_attention_mask=padding,
            output_hidden_states=True,
        )
        said = (states[padding.bool()] for states in found.decoder_hidden_states)
        return [*found.encoder_hidden_states, *said]

    model = made(lambda: hf.WhisperModel(hf.WhisperConfig(**WHISPER)))
    same_as_eager(model, run, normal(2, 8, 20), normal(2, 9, 32, seed=1))


def test_vit():
    def run(model, pixels):
        return model(pixel_values=pixels, output_hidden_states=True).hidden_states

    same_as_eager(made(lambda: hf.ViTModel(hf.ViTConfig(**VISION))), run, normal(2, 3, 12, 12))


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
def test_clip(padding):
    text = {**WIDE, **ENDS, "eos_token_id": 49, "max_position_embeddings": 9}
    tokens = torch.arange(18).reshape(2, 9) + 3

    def run(model, pixels):
        found = model(input_ids=tokens, pixel_values=pixels, attention_mask=padding)
        said = found.text_model_output.last_hidden_state[padding.bool()]
        return said, found.vision_model_output.last_hidden_state

    model = made(lambda: hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=VISION)))
    same_as_eager(model, run, normal(2, 3, 12, 12))


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss"])
def test_training_of_models_that_were_eager_only(name):
    """Three steps of training end where eager attention's end."""
    ended = []
    for implementation in ("regard", "eager"):
        model = made(TEXT[name]).train()
        model.set_attn_implementation(implementation)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        for step in range(3):
            optimizer.zero_grad()
            output = model(inputs_embeds=normal(2, 9, 32, seed=step)).last_hidden_state
            loss = (output * normal(2, 9, 32, seed=9)).sum()
            loss.backward()
            optimizer.step()
        ended.append([loss, *(p.detach() for p in model.parameters())])
    torch.testing.assert_close(*ended, rtol=1e-3, atol=1e-4)


WRITERS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, **ENDS)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SLIDING, **ENDS)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GEMMA2, **ENDS)),
    "gpt-oss": lambda: hf.GptOssForCausalLM(hf.GptOssConfig(**GPT_OSS, **ENDS)),
}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("make", WRITERS.values(), ids=WRITERS)
def test_generation(make, cache):
    model = made(make)
    tokens, written = torch.arange(18).reshape(2, 9) + 3, []
    for name in ("regard", "eager"):
        model.set_attn_implementation(name)
        found = model.generate(
            tokens,
            attention_mask=PADDING["left"],
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            cache_implementation=cache,
            disable_compile=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        written.append((found.sequences, torch.stack(found.logits)))
    torch.testing.assert_close(*written, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma2", "gpt-oss"])
def test_weights_that_are_asked_for(name):
    model, weights = made(TEXT[name]), []
    for implementation in ("regard", "eager"):
        model.set_attn_implementation(implementation)
        leaf = normal(2, 9, 32).requires_grad_()
        found = model(inputs_embeds=leaf, output_attentions=True).attentions
        (gradient,) = torch.autograd.grad(sum(w.square().sum() for w in found), leaf)
        weights.append((*found, gradient))
        assert len(found) == 2 and found[0].shape == (2, 4, 9, 9)
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_weights_of_an_encoder_and_a_decoder():
    model, weights = made(lambda: hf.T5Model(hf.T5Config(**T5, decoder_start_token_id=0))), []
    for implementation in ("regard", "eager"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            found = model(
                torch.arange(9)[None],
                decoder_input_ids=torch.arange(5)[None],
                output_attentions=True,
            )
        weights.append((found.encoder_attentions, found.decoder_attentions, found.cross_attentions))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_packed_sequences():
    """Sequences in one row, told by their positions or by where they begin, attend alone."""
    model = made(TEXT["llama"])
    model.set_attn_implementation("regard")
    embedded, starts = normal(1, 9, 32), torch.tensor([0, 4, 9], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = {
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": 5,
        "max_length_k": 5,
    }
    alone = torch.cat(
        [
            model(inputs_embeds=part).last_hidden_state
            for part in (embedded[:, :4], embedded[:, 4:])
        ],
        1,
    )
    for told in ({"use_cache": False}, packed):
        found = model(inputs_embeds=embedded, position_ids=positions, **told).last_hidden_state
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_weights_of_the_operator_are_not_computed_unasked(monkeypatch):
    model = made(TEXT["bert"])
    model.set_attn_implementation("regard")
    monkeypatch.setattr(regard.huggingface, "dense", None)
    model(inputs_embeds=normal(2, 9, 32))
    with pytest.raises(TypeError):
        model(inputs_embeds=normal(2, 9, 32), output_attentions=True)
