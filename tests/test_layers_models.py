"""Transformer and RecurrentEncoderDecoder: one interface, padding without influence, decoding."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn
from torch.nn import functional

import regard
from regard.errors import OptionError
from regard.layers import (
    Alibi,
    RecurrentEncoderDecoder,
    RelativePositions,
    Rotary,
    Transformer,
)
from test_layers_blocks import like

SOURCE, TARGET, WIDTH, H = 40, 50, 16, 4
MODELS = {
    "pre-norm": lambda: Transformer(SOURCE, TARGET, width=WIDTH, heads=H, layers=2),
    "post-norm": lambda: Transformer(
        SOURCE, TARGET, width=WIDTH, heads=H, layers=2, norm="post", tie_embeddings=False
    ),
    "rotary": lambda: Transformer(
        SOURCE, TARGET, width=WIDTH, heads=H, layers=1, rotary=Rotary(4), key_heads=2
    ),
    "alibi": lambda: Transformer(
        SOURCE, TARGET, width=WIDTH, heads=H, layers=1, position_bias=Alibi(H)
    ),
    "relative": lambda: Transformer(
        SOURCE, TARGET, width=WIDTH, heads=H, layers=1, position_bias=RelativePositions(H)
    ),
    "additive": lambda: RecurrentEncoderDecoder(SOURCE, TARGET, width=WIDTH),
    "bilinear": lambda: RecurrentEncoderDecoder(
        SOURCE, TARGET, width=WIDTH, attention="bilinear", tie_embeddings=False
    ),
    "without": lambda: RecurrentEncoderDecoder(SOURCE, TARGET, width=WIDTH, attention=None),
}
LENGTHS = torch.tensor([7, 4, 1])


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def sentences():
    torch.manual_seed(1)
    return torch.randint(SOURCE, (3, 7)), LENGTHS, torch.randint(TARGET, (3, 5))


def decoded(model, source, lengths, target):
    """Logits token by token."""
    state = model.start(model.encode(source, lengths))
    found = []
    for tokens in target.unbind(1):
        logits, state = model.step(tokens, state)
        found.append(logits)
    return torch.stack(found, dim=1)


def test_step_by_step_is_all_at_once(model):
    source, lengths, target = sentences()
    whole = model(source, lengths, target)
    assert whole.shape == (3, 5, TARGET)
    torch.testing.assert_close(decoded(model, source, lengths, target), whole, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        found = decoded(model, source, lengths, target)
    torch.testing.assert_close(found, whole.detach(), rtol=1e-4, atol=1e-5)


def test_padding_has_no_influence(model):
    source, lengths, target = sentences()
    whole, weights = model(source, lengths, target, return_weights=True)
    other = source.clone()
    other[1, 4:], other[2, 1:] = 3, 4
    torch.testing.assert_close(model(other, lengths, target), whole, rtol=0, atol=0)
    alone = model(source[1:2, :4], lengths[1:2], target[1:2])
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-5)
    for operator in weights:
        assert not operator.received()[1, :, 4:].any() and not operator.received()[2, :, 1:].any()


def test_later_target_tokens_have_no_influence(model):
    source, lengths, target = sentences()
    other = target.clone()
    other[:, 3:] = 2
    before, after = (model(source, lengths, tokens) for tokens in (target, other))
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=0)
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_every_parameter_learns(model):
    source, lengths, target = sentences()
    model.train()
    logits = model(source, lengths, target)
    functional.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A constant added to all keys of a query changes no weight.
        constant = "key.bias" in name
        assert constant or parameter.grad.any(), name


def test_beams_are_rows_that_are_repeated_and_reordered(model):
    source, lengths, target = sentences()
    beams = target.repeat_interleave(2, dim=0)
    beams[1::2] = (beams[1::2] + 1) % TARGET
    order = [torch.tensor([1, 0, 2, 2, 5, 4]), torch.tensor([2, 3, 4, 5])]
    state = model.start(model.encode(source, lengths))
    state.reorder(torch.arange(3).repeat_interleave(2))
    model.step(beams[:, 0], state)
    state.reorder(order[0])
    model.step(beams[order[0], 1], state)
    state.reorder(order[1])  # the first sentence is finished
    found, _ = model.step(beams[order[0]][order[1], 2], state)
    kept = order[0][order[1]]
    history = beams[kept]
    expected = model(source[kept // 2], lengths[kept // 2], history[:, :3])[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [[0, 0, 2], [2, 2, 1, 1], [1, 0, 0, 0, 2], [1]], ids=str)
def test_rows_may_be_repeated_in_any_number(model, rows):
    source, lengths, target = sentences()
    state = model.start(model.encode(source, lengths))
    model.step(target[:, 0], state)
    for order in (rows, list(reversed(range(len(rows))))):
        state.reorder(torch.tensor(order))
    kept = torch.tensor(rows[::-1])
    found, _ = model.step(target[kept, 1], state)
    expected = model(source[kept], lengths[kept], target[kept, :2])[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_weights_are_those_of_the_decoder(model):
    source, lengths, target = sentences()
    logits, weights = model(source, lengths, target, return_weights=True)
    torch.testing.assert_close(logits, model(source, lengths, target), rtol=0, atol=0)
    heads = H if isinstance(model, Transformer) else 1
    assert all(operator.shape == (3, heads, 5, 7) for operator in weights)
    with_none = isinstance(model, RecurrentEncoderDecoder) and model.cross is None
    assert bool(weights) != with_none
    if with_none:
        return
    with regard.watch(model) as seen, torch.no_grad():
        model(source, lengths, target)
    crossing = [record for record in seen if "cross" in record.name]
    assert len(crossing) == len(weights)
    for record, operator in zip(crossing, weights, strict=True):
        torch.testing.assert_close(record.dense(), operator.dense(), rtol=1e-5, atol=1e-6)


def test_watch_names_every_attention():
    model = MODELS["pre-norm"]().eval()
    with regard.watch(model) as seen, torch.no_grad():
        decoded(model, *sentences())
    assert [record.name for record in seen] == [
        *(f"encoder.blocks.{n}.attention" for n in range(2)),
        *(f"decoder.blocks.{n}.{part}" for n in range(2) for part in ("attention", "cross")),
    ]
    assert seen[2].shape == (3, H, 5, 5)  # five steps, one record


def test_copies_and_state_dicts(model):
    sentence = sentences()
    expected = model(*sentence)
    torch.testing.assert_close(copy.deepcopy(model)(*sentence), expected, rtol=0, atol=0)
    state = model.state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.manual_seed(0)
    other = copy.deepcopy(model)
    other.load_state_dict({name: torch.randn_like(held) for name, held in state.items()})
    assert not torch.allclose(other(*sentence), expected)


def test_autocast(model):
    sentence = sentences()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(*sentence)
    torch.testing.assert_close(logits.float(), model(*sentence), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["pre-norm", "rotary", "alibi"])
def test_compiled_in_one_graph(name):
    torch.manual_seed(0)
    model, sentence = MODELS[name](), sentences()
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*sentence), model(*sentence), rtol=1e-4, atol=1e-5)
    compiled(*sentence).sum().backward()


def test_torch_compile_leaves_the_recurrent_model_as_it_is():
    model, sentence = MODELS["additive"]().eval(), sentences()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(*sentence), model(*sentence), rtol=0, atol=0)


def test_trained_by_data_parallel():
    torch.distributed.init_process_group(
        "gloo", init_method=f"file:///tmp/regard-{os.getpid()}", rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        model, sentence = MODELS["pre-norm"](), sentences()
        model.eval()
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.testing.assert_close(wrapped(*sentence), model(*sentence))
        wrapped(*sentence).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_transformer_is_pytorchs(norm):
    torch.manual_seed(0)
    ours = Transformer(
        SOURCE, TARGET, width=WIDTH, heads=H, layers=2, feedforward=24, dropout=0.0, norm=norm
    )
    theirs = nn.Transformer(WIDTH, H, 2, 2, 24, 0.0, batch_first=True)
    for stack, own in ((theirs.encoder, ours.encoder), (theirs.decoder, ours.decoder)):
        stack.layers = nn.ModuleList(like(block, "relu") for block in own.blocks)
        stack.norm = own.norm
    source, lengths, target = sentences()
    embedded = [
        ours.positions(embedding(tokens) * WIDTH**0.5)
        for embedding, tokens in (
            (ours.source_embedding, source),
            (ours.target_embedding, target),
        )
    ]
    padding = torch.arange(7) >= lengths[:, None]
    hidden = nn.Transformer.generate_square_subsequent_mask(5) < 0
    expected = theirs(
        *embedded,
        tgt_mask=hidden,
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    expected = expected @ ours.target_embedding.weight.T
    torch.testing.assert_close(ours(source, lengths, target), expected, rtol=1e-3, atol=1e-3)


def test_embeddings_that_are_shared():
    options = {"width": WIDTH, "heads": H, "layers": 1}
    tied = Transformer(SOURCE, TARGET, **options)
    assert tied.logits.weight is tied.target_embedding.weight
    joint = Transformer(TARGET, TARGET, joint_vocabulary=True, **options)
    assert joint.source_embedding is joint.target_embedding
    apart = Transformer(SOURCE, TARGET, tie_embeddings=False, **options)
    assert apart.logits.weight is not apart.target_embedding.weight
    with pytest.raises(OptionError, match="40 source tokens and 50 target tokens"):
        Transformer(SOURCE, TARGET, joint_vocabulary=True, **options)


def test_initial_values_are_the_articles():
    torch.manual_seed(0)
    model = Transformer(1000, 1000, width=64, heads=4, layers=1)
    weight, embedding = model.encoder.blocks[0].feedforward.enter.weight, model.target_embedding
    bound = (6 / (64 + 256)) ** 0.5
    assert weight.abs().max() <= bound and weight.std() > 0.95 * bound / 3**0.5
    assert (embedding.weight.std() - 64**-0.5).abs() < 0.01


@pytest.mark.parametrize("attention", ["additive", None])
def test_the_recurrent_model_by_its_equations(attention):
    torch.manual_seed(0)
    model = RecurrentEncoderDecoder(SOURCE, TARGET, width=WIDTH, attention=attention).eval()
    source, _, target = sentences()
    states, last = model.encoder(model.source_embedding(source[:1]))  # nothing is padded
    last = last.transpose(0, 1).flatten(1)
    hidden, found = torch.tanh(model.first(last)), []
    for token in target[:1].unbind(1):
        embedded, context = model.target_embedding(token), last
        if attention:
            inner = torch.tanh(model.cross.query(hidden)[:, None] + model.cross.key(states))
            context = ((inner @ model.cross.vector).softmax(-1)[..., None] * states).sum(1)
        hidden = model.decoder(torch.cat([embedded, context], -1), hidden)
        made = torch.tanh(model.readout(torch.cat([hidden, context, embedded], -1)))
        found.append(model.logits(made))
    torch.testing.assert_close(
        model(source[:1], LENGTHS[:1], target[:1]),
        torch.stack(found, 1),
        rtol=1e-4,
        atol=1e-5,
    )


def test_attention_that_is_none():
    with pytest.raises(OptionError, match="attention='dot'"):
        RecurrentEncoderDecoder(SOURCE, TARGET, attention="dot")
