"""Beam search against looking at every sequence there is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from regard.errors import OptionError  # noqa: E402
from regard.layers import RecurrentEncoderDecoder, Transformer  # noqa: E402
from regard.tasks.beam import _largest, search  # noqa: E402
from regard.tasks.vocabulary import BEGIN, END  # noqa: E402


@dataclass
class State:
    """The sequences so far, and which source each belongs to."""

    sequences: torch.Tensor
    source: torch.Tensor

    def reorder(self, index):
        self.sequences, self.source = self.sequences[index], self.source[index]


class Table:
    """A model whose probabilities are a random table: of the source, and of all tokens so far."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def encode(self, source, lengths):
        return source[:, 0]

    def start(self, memory):
        return State(torch.empty((len(memory), 0), dtype=torch.long), memory)

    def step(self, tokens, state):
        state.sequences = torch.cat([state.sequences, tokens[:, None]], 1)
        return torch.stack(list(map(self.row, state.sequences, state.source))), state

    def row(self, sequence, source):
        key = hash((self.seed, int(source), *sequence.tolist())) % (1 << 31)
        return 2 * torch.randn(self.size, generator=torch.Generator().manual_seed(key))


def log_p(model, source, tokens):
    sequence, total = [BEGIN], 0.0
    for token in tokens:
        row = model.row(torch.tensor(sequence), torch.tensor(source)).log_softmax(-1)
        total += float(row[token])
        sequence.append(token)
    return total


def every(model, source, longest, penalty):
    """All finished sequences with their scores, best first."""
    others = [token for token in range(model.size) if token != END]
    found = [
        (log_p(model, source, (*words, END)) / ((5 + n + 1) / 6) ** penalty, list(words))
        for n in range(longest)
        for words in itertools.product(others, repeat=n)
    ]
    return sorted(found, reverse=True)


SOURCES = torch.tensor([[7], [8], [9]])
LENGTHS = torch.ones(3, dtype=torch.long)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_sequences(penalty, seed):
    model, longest = Table(5, seed), 4
    beam = 5**longest  # wider than there are sequences
    found = search(model, SOURCES, LENGTHS, beam=beam, length_penalty=penalty, longest=longest)
    for source, hypotheses in zip(SOURCES[:, 0].tolist(), found, strict=True):
        wanted = every(model, source, longest, penalty)
        assert len(hypotheses) == len(wanted)
        for hypothesis, (score, tokens) in zip(hypotheses[:20], wanted[:20], strict=True):
            assert hypothesis.tokens == tokens
            assert hypothesis.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_takes_the_best_token_each_time(seed):
    model = Table(6, seed)
    for source, (hypothesis,) in zip(
        SOURCES[:, 0].tolist(), search(model, SOURCES, LENGTHS, beam=1, longest=30), strict=True
    ):
        sequence = [BEGIN]
        while len(sequence) < 31:
            row = model.row(torch.tensor(sequence), torch.tensor(source))
            sequence.append(int(row.argmax()))
            if sequence[-1] == END:
                break
        assert hypothesis.tokens == [token for token in sequence[1:] if token != END]


def test_a_wider_beam_is_seldom_worse():
    better = 0
    for seed in range(10):
        one, five = (
            search(Table(8, seed), SOURCES, LENGTHS, beam=k, length_penalty=0.0, longest=12)
            for k in (1, 5)
        )
        better += sum(b[0].score >= a[0].score for a, b in zip(one, five, strict=True))
    assert better >= 28  # of 30


def test_a_sequence_without_end_is_cut_off():
    class Endless(Table):
        def row(self, sequence, source):
            row = super().row(sequence, source)
            row[END] = float("-inf")
            return row

    for hypotheses in search(Endless(5, 0), SOURCES, LENGTHS, beam=3, longest=7):
        assert len(hypotheses[0].tokens) == 7
        assert hypotheses[0].score == float("-inf")


@pytest.mark.parametrize("size", [3, 64, 640, 1000, 8001])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_largest_numbers_are_found_as_topk_finds_them(size, k):
    rows = torch.randn(7, size, generator=torch.Generator().manual_seed(size + k))
    rows[0, -1] = 9.0  # behind the last whole chunk
    rows[1] = -torch.inf
    rows[1, size // 2] = 0.0
    k = min(k, size)
    values, places = _largest(rows, k)
    assert torch.equal(values, rows.topk(k, dim=1).values)
    assert torch.equal(rows.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("options", [{"beam": 0}, {"longest": 0}, {"length_penalty": -1.0}])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(OptionError, match="one at least"):
        search(Table(5, 0), SOURCES, LENGTHS, **options)


MODELS = {
    "transformer": lambda: Transformer(20, 20, width=16, heads=2, layers=2, joint_vocabulary=True),
    "rnn": lambda: RecurrentEncoderDecoder(20, 20, width=16),
    "rnn-without-attention": lambda: RecurrentEncoderDecoder(20, 20, width=16, attention=None),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_what_each_source_gives_alone_and_without_cache(name):
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that some sequences end
    lengths = torch.tensor([5, 2, 4, 1])
    source = torch.randint(4, 20, (4, 5)).where(torch.arange(5) < lengths[:, None], 0)
    together = search(model, source, lengths, beam=3, longest=12)
    for row, length, hypotheses in zip(source, lengths, together, strict=True):
        (alone,) = search(model, row[None, :length], length[None], beam=3, longest=12)
        assert [h.tokens for h in alone] == [h.tokens for h in hypotheses]
        best = hypotheses[0]
        if best.score == float("-inf"):
            continue
        target = torch.tensor([[BEGIN, *best.tokens]])
        with torch.no_grad():
            rows = model(row[None, :length], length[None], target)[0].log_softmax(-1)
        total = sum(float(rows[n, t]) for n, t in enumerate([*best.tokens, END]))
        expected = total / ((5 + len(best.tokens) + 1) / 6)
        assert best.score == pytest.approx(expected, abs=1e-3)
