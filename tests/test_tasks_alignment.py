"""Alignments: links, error rates, the lexicon they are compared with, and explanations."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("tokenizers", "pooch"):
    pytest.importorskip(needed)

from regard.errors import ModelError, OptionError  # noqa: E402
from regard.layers import RecurrentEncoderDecoder, Transformer  # noqa: E402
from regard.tasks import alignment  # noqa: E402
from regard.tasks.alignment import Choice, Counts, SoftAlignment  # noqa: E402
from regard.tasks.batches import Example  # noqa: E402
from regard.tasks.gold import linked  # noqa: E402
from regard.tasks.lexicon import Lexicon, intersection  # noqa: E402
from regard.tasks.vocabulary import Pieces  # noqa: E402
from regard.viewer import page  # noqa: E402


def test_pharaohs_format():
    assert alignment.pharaoh({(2, 1), (0, 0), (3, 0)}) == "0-0 3-0 2-1"
    assert alignment.from_pharaoh("0-0 3p0 2-1") == ({(0, 0), (2, 1)}, {(3, 0)})
    assert alignment.from_pharaoh("1-1", first=1) == ({(0, 0)}, set())
    with pytest.raises(OptionError, match="the link '1:2'"):
        alignment.from_pharaoh("0-0 1:2")


def test_error_rates():
    sure, possible = [{(0, 0), (1, 1)}], [{(0, 0), (1, 1), (2, 1)}]
    assert Counts.of(sure, sure, possible).error_rate == 0
    assert Counts.of([{(2, 1), (0, 0), (1, 1)}], sure, possible).error_rate == 0
    assert Counts.of([{(0, 0), (5, 5)}], sure, possible).error_rate == pytest.approx(0.5)
    figures = Counts.of([{(0, 0), (2, 1)}], sure, possible).figures()
    assert figures == {"error_rate": 0.25, "precision": 1.0, "recall": 0.5}


def dictionary(count: int = 300) -> list[Example]:
    """Sentences whose words are translated one by one, in the other order."""
    draw = random.Random(0)
    rows = [draw.sample(range(10, 40), draw.randint(2, 8)) for _ in range(count)]
    return [Example(row, [word + 100 for word in reversed(row)]) for row in rows]


def test_a_lexicon_finds_who_translates_whom():
    examples = dictionary()
    forwards = Lexicon(examples)
    backwards = Lexicon([Example(target, source) for source, target in examples])
    for example, links in zip(
        examples[:30], intersection(examples[:30], forwards, backwards), strict=True
    ):
        size = len(example.source)
        assert links == {(n, size - 1 - n) for n in range(size)}
    assert forwards.align(Example([10], [999])) == set()


def test_pieces_are_gathered_into_words():
    source = Pieces([1, 2, 3], ["▁a", "b", "▁c"], [0, 0, 1], ["ab", "c"])
    target = Pieces([1, 2, 3], ["▁x", "▁y", "z"], [0, 1, 1], ["x", "yz"])
    weights = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.4, 0.2, 0.4]])
    words = alignment.word_weights(weights, source, target)
    np.testing.assert_allclose(words, [[0.5, 0.5], [0.4, 0.6]])
    assert alignment.word_links(weights, source, target) == {(0, 0), (1, 1)}


MODELS = {
    "transformer": lambda: Transformer(
        150, 150, width=16, heads=2, layers=3, joint_vocabulary=True
    ),
    "rnn": lambda: RecurrentEncoderDecoder(150, 150, width=16),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_was_attended_to(name):
    model = MODELS[name]().eval()
    examples = dictionary()[:5]
    together = alignment.attended(model, examples)
    for example, weights in zip(examples, together, strict=True):
        layers, heads = (3, 2) if name == "transformer" else (1, 1)
        assert weights.shape == (layers, heads, len(example.target) + 1, len(example.source))
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        (alone,) = alignment.attended(model, [example])
        np.testing.assert_allclose(weights, alone, atol=1e-5)
    first, second = together[0][0, 0, 0], together[0][0, 0, 1]
    assert np.array_equal(alignment.picked(together[0], Choice(0, 0, shifted=False))[0], first)
    assert np.array_equal(alignment.picked(together[0], Choice(0, 0, shifted=True))[0], second)
    mean = alignment.picked(together[0], Choice(0, None, shifted=False))
    np.testing.assert_allclose(mean[0], together[0][0, :, 0].mean(0))
    with pytest.raises(OptionError, match="layer 7, head 0"):
        alignment.picked(together[0], Choice(7, 0, shifted=False))


def test_no_attention_no_alignment():
    model = RecurrentEncoderDecoder(150, 150, width=16, attention=None)
    with pytest.raises(ModelError, match="has no attention to its source"):
        alignment.attended(model, dictionary()[:1])


class Reader(torch.nn.Module):
    """Two layers of two heads, of which head 1 of layer 1 looks at the word that it just wrote."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, source, lengths, target, return_weights):
        uniform = (source[:, None] > 0).float() / lengths[:, None, None]
        same = (target[:, :, None] == source[:, None] + 100).float()
        seen = torch.where(same.sum(-1, keepdim=True) > 0, same, uniform)
        flat = uniform.expand_as(seen)
        layers = torch.stack([flat, flat], 1), torch.stack([flat, seen], 1)

        class Operator:
            def __init__(self, weights):
                self.dense = lambda: weights

        return None, [Operator(layer) for layer in layers]


def test_the_head_that_aligns_is_chosen():
    examples = dictionary()
    best, every = alignment.chosen(Reader(), examples[:250], examples[250:])
    assert (best.layer, best.head, best.shifted) == (1, 1, True)
    assert best.agreement == 1
    assert len(every) == 2 * 3 * 2
    assert str(best).startswith("layer 1, head 1, shifted (chosen on validation data, agreement")


def test_an_explanation_is_shown_in_three_ways():
    source = Pieces([5, 6, 7], ["▁two", "▁dog", "s"], [0, 1, 1], ["two", "dogs"])
    target = Pieces([8, 9], ["▁zwei", "▁hunde"], [0, 1], ["zwei", "hunde"])
    weights = np.zeros((1, 2, 3, 3))
    weights[0, :, 0, 0] = weights[0, :, 1, 1] = weights[0, :, 2, 2] = 1
    found = SoftAlignment(source, target, weights, Choice(0, 1, shifted=False, agreement=0.8))
    lines = "\n".join(found.lines())
    assert "two 100%" in lines and "dogs 100%" in lines
    assert "Alignment: 0-0 1-1" in lines
    assert "layer 0, head 1, not shifted (chosen on validation data, agreement" in lines
    assert found.as_json()["alignment"] == "0-0 1-1"
    assert found.as_json()["weights"] == [[1, 0], [0, 1]]
    record = found.record()
    assert record.texts[0].tokens == ["two", "dog", "s"]
    assert record.texts[0].space_before == [True, True, False]
    assert record.texts[1].tokens == ["zwei", "hunde", "</s>"]
    assert "zwei" in page(record)
    shifted = SoftAlignment(source, target, weights, Choice(0, 1, shifted=True))
    assert shifted.record().texts[1].tokens == ["<s>", "zwei", "hunde"]
    assert "not chosen on data" in str(shifted.choice)


@pytest.mark.skipif("REGARD_DATA" not in os.environ, reason="needs REGARD_DATA")
def test_gold_alignments():
    name, pairs = linked(("de", "en"))
    assert name == "Europarl" and len(pairs) == 100
    assert sum(len(pair.sure) for pair in pairs) == 1233
    turned = linked(("en", "de"))[1][0]
    assert turned.source == pairs[0].target
    assert {(t, s) for s, t in turned.sure} == pairs[0].sure
    name, pairs = linked(("en", "fr"))
    assert name == "Hansards" and len(pairs) == 447
    for pair in pairs:
        for s, t in pair.sure | pair.possible:
            assert 0 <= s < len(pair.source.split()) and 0 <= t < len(pair.target.split())
    with pytest.raises(OptionError, match="no gold alignments from de to fr"):
        linked(("de", "fr"))
