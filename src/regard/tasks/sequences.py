"""What tasks share that turn one sequence into another: models, loss, decoding, explanation.

A subclass says where its pairs of texts come from, how they become pieces, and what is measured.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import nn

from regard.errors import OptionError
from regard.layers import RecurrentEncoderDecoder, Transformer
from regard.tasks import beam
from regard.tasks.alignment import Choice, SoftAlignment, attended, chosen
from regard.tasks.batches import Batches, Example, SequenceBatch, padded
from regard.tasks.configuration import Range
from regard.tasks.smoothing import smoothed_cross_entropy
from regard.tasks.task import Loss, Task, TrainingSettings, UseSettings
from regard.tasks.vocabulary import PAD, Vocabulary

__all__ = ["Pair", "SequenceSettings", "SequenceTask", "SequenceUse"]

Pair = tuple[str, str]

_LONGEST = 500  # pieces of an input


@dataclass(frozen=True)
class SequenceSettings(TrainingSettings):
    """What the training of every model from sequence to sequence can be told."""

    model: Annotated[Literal["transformer", "rnn", "rnn-without-attention"], "what to train"] = (
        "transformer"
    )
    width: Annotated[int, "size of the vectors; an rnn takes twice as much", Range(1)] = 128
    heads: Annotated[int, "heads of each attention of a transformer", Range(1)] = 4
    layers: Annotated[int, "layers of a transformer's encoder, and of its decoder", Range(1)] = 4
    feedforward: Annotated[int, "inner size of a transformer's feed-forward parts", Range(1)] = 256
    dropout: Annotated[float, "share of numbers that are dropped in training", Range(0, 1)] = 0.3
    smoothing: Annotated[float, "how much labels are smoothed", Range(0, 1)] = 0.1
    tokens: Annotated[int, "tokens of a batch, on its longer side, padding included", Range(1)] = (
        2048
    )


@dataclass(frozen=True)
class SequenceUse(UseSettings):
    """How answers are searched for."""

    beam: Annotated[int, "sequences that are kept in beam search; 1: greedy", Range(1)] = 5
    length_penalty: Annotated[float, "exponent of the length penalty; larger: longer", Range(0)] = (
        1.0
    )


S = TypeVar("S", bound=SequenceSettings)


class SequenceTask(Task[S]):
    """A task from sequence to sequence, with one vocabulary for both sides."""

    use_type = SequenceUse
    vocabulary: Vocabulary

    @abstractmethod
    def pairs(self, split: str) -> list[Pair]:
        """Source and target texts of "train", "validation" or one of `splits`."""

    @abstractmethod
    def learn_vocabulary(self) -> Vocabulary:
        """The vocabulary of the training data."""

    def spelled(self, text: str) -> str:
        """An input of the user's, as the sources of `pairs` are written."""
        return text.strip()

    def load(self, assets: Mapping[str, str] | None) -> None:
        """The vocabulary."""
        known = assets and Vocabulary.from_json(assets["vocabulary.json"])
        self.vocabulary = known or self.learn_vocabulary()

    def assets(self) -> dict[str, str]:
        """The vocabulary."""
        return {"vocabulary.json": self.vocabulary.to_json()}

    def batches(self, validation: bool, rank: int = 0, world: int = 1) -> Batches:
        """Batches of about `tokens` tokens."""
        examples = self.examples("validation" if validation else "train")
        seed = None if validation else self.settings.seed
        return Batches(examples, self.settings.tokens, seed, rank, world)

    def examples(self, split: str) -> list[Example]:
        """The pairs of a split in pieces; those with an empty side are left out."""
        sides = zip(*self.pairs(split), strict=True)
        encoded = [self.vocabulary.encode(side) for side in sides]
        return [Example(*pair) for pair in zip(*encoded, strict=True) if all(pair)]

    def model(self) -> nn.Module:
        """A Transformer, or a recurrent encoder and decoder with or without attention."""
        settings, size = self.settings, len(self.vocabulary)
        if settings.model == "transformer":
            return Transformer(
                size,
                size,
                width=settings.width,
                heads=settings.heads,
                layers=settings.layers,
                feedforward=settings.feedforward,
                dropout=settings.dropout,
                joint_vocabulary=True,
            )
        return RecurrentEncoderDecoder(
            size,
            size,
            width=2 * settings.width,
            attention="additive" if settings.model == "rnn" else None,
            dropout=settings.dropout,
        )

    def loss(self, model: nn.Module, batch: SequenceBatch) -> Loss:
        """Cross-entropy per token, with smoothed labels."""
        logits = model(batch.source, batch.lengths, batch.target[:, :-1])
        smoothing = self.settings.smoothing if model.training else 0.0
        following = batch.target[:, 1:].reshape(-1)
        return Loss(*smoothed_cross_entropy(logits.flatten(0, 1), following, smoothing, PAD))

    def predict(self, model: nn.Module, inputs: Sequence[str], use: SequenceUse) -> list[str]:
        """The best sequence for each input; an empty one for an empty one."""
        rows = self.vocabulary.encode([self.spelled(text) for text in inputs])
        found = self.decode(model, rows, use)
        return self.vocabulary.decode(found)

    def decode(
        self, model: nn.Module, sources: Sequence[Sequence[int]], use: SequenceUse
    ) -> list[list[int]]:
        """The pieces of the best target of each source, given as pieces; alike lengths together."""
        device = next(model.parameters()).device
        found: list[list[int]] = [[] for _ in sources]
        order = sorted((n for n, row in enumerate(sources) if row), key=lambda n: len(sources[n]))
        for start in range(0, len(order), use.batch):
            numbers = order[start : start + use.batch]
            rows = [sources[n] for n in numbers]
            if len(rows[-1]) > _LONGEST:
                raise OptionError(f"an input of {len(rows[-1])} pieces", f"at most {_LONGEST}")
            lengths = torch.tensor([len(row) for row in rows], device=device)
            best = beam.search(
                model,
                padded(rows).to(device),
                lengths,
                beam=use.beam,
                length_penalty=use.length_penalty,
                longest=2 * len(rows[-1]) + 10,
            )
            for n, hypotheses in zip(numbers, best, strict=True):
                found[n] = hypotheses[0].tokens
        return found

    def calibrate(self, model: nn.Module) -> dict[str, Any]:
        """Which attention stands for the alignment."""
        if self.settings.model == "rnn-without-attention":
            return {}
        best, every = chosen(model, *(self.examples(split) for split in ("train", "validation")))
        return {"alignment": asdict(best), "considered": [asdict(one) for one in every]}

    @property
    def choice(self) -> Choice:
        """Which attention stands for the alignment; without calibration, the last layer's mean."""
        if "alignment" in self.calibration:
            return Choice(**self.calibration["alignment"])
        last = self.settings.layers - 1 if self.settings.model == "transformer" else 0
        return Choice(last, None, shifted=False)

    def explain(
        self, model: nn.Module, given: str, target: str | None, use: SequenceUse
    ) -> SoftAlignment:
        """What each piece of the answer attended to in the input."""
        source = self.vocabulary.pieces(self.spelled(given))
        answer = self.predict(model, [given], use)[0] if target is None else target
        written = self.vocabulary.pieces(answer)
        if not source.ids or not written.ids:
            raise OptionError("nothing to align: a side is empty", "a word at least on each side")
        weights = attended(model, [Example(source.ids, written.ids)])[0]
        return SoftAlignment(source, written, weights, self.choice, self.settings.model)
