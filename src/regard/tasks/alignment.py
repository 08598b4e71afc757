"""Cross-attention as a word alignment: soft, as links, in Pharaoh's format, on the page.

The row of attention from which a target piece is predicted tells where the model looked for it; so
does the row after it, whose query knows the piece: shifted by one (Chen et al., 2020). Which layer,
head and row agree best with a lexicon counted in the training data is chosen on validation data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from regard.errors import ModelError, OptionError
from regard.tasks.batches import Example, collate
from regard.tasks.lexicon import Lexicon, Links, intersection
from regard.tasks.vocabulary import Pieces
from regard.viewer import Call, Record, Text

__all__ = [
    "Choice",
    "Counts",
    "SoftAlignment",
    "attended",
    "chosen",
    "from_pharaoh",
    "links",
    "pharaoh",
    "picked",
    "word_links",
    "word_weights",
]

Floats = npt.NDArray[np.floating[Any]]

_PIECES = 2000  # of a batch


@dataclass(frozen=True)
class Choice:
    """Which attention stands for the alignment.

    layer, head: numbered from 0; head None: the mean over heads. shifted: the row whose query knows
    the target piece, not the row that predicts it. agreement: 1 − alignment error rate on
    validation data, against a lexicon; None where nothing was chosen.
    """

    layer: int
    head: int | None
    shifted: bool
    agreement: float | None = None

    def __str__(self) -> str:
        head = "mean over heads" if self.head is None else f"head {self.head}"
        rows = "shifted" if self.shifted else "not shifted"
        how = (
            "not chosen on data"
            if self.agreement is None
            else (f"chosen on validation data, agreement with IBM Model 1: {self.agreement:.2f}")
        )
        return f"layer {self.layer}, {head}, {rows} ({how})"


@dataclass(frozen=True)
class Counts:
    """How well links agree with gold ones: links found, sure gold links, and those in both."""

    found: int = 0
    sure: int = 0
    found_sure: int = 0
    found_possible: int = 0

    @classmethod
    def of(cls, found: Iterable[Links], sure: Iterable[Links], possible: Iterable[Links]) -> Counts:
        """Summed over sentences; possible links include the sure ones."""
        rows = [
            (len(a), len(s), len(a & s), len(a & (p | s)))
            for a, s, p in zip(found, sure, possible, strict=True)
        ]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else cls()

    @property
    def error_rate(self) -> float:
        """AER = 1 − (|A ∩ S| + |A ∩ P|) / (|A| + |S|) (Och and Ney, 2003)."""
        return 1 - (self.found_sure + self.found_possible) / max(self.found + self.sure, 1)

    def figures(self) -> dict[str, float]:
        """Error rate, precision and recall."""
        return {
            "error_rate": round(self.error_rate, 4),
            "precision": round(self.found_possible / max(self.found, 1), 4),
            "recall": round(self.found_sure / max(self.sure, 1), 4),
        }


@torch.no_grad()
def attended(model: nn.Module, examples: Sequence[Example]) -> list[Floats]:
    """What each target attended to in its source: (layers, heads, T + 1, S) for each example.

    Row 0 belongs to the beginning, row t to the query that knows t pieces of the target.

    Raises: ModelError for a model without attention to its source.
    """
    return [one for batch in _batched(examples) for one in _attended(model, batch)]


def _attended(model: nn.Module, examples: Sequence[Example]) -> list[Floats]:
    device = next(model.parameters()).device
    batch = [part.to(device) for part in collate(examples)]
    _, operators = model(batch[0], batch[1], batch[2][:, :-1], return_weights=True)
    if not operators:
        raise ModelError(
            "this model has no attention to its source", "a transformer, or an rnn with attention"
        )
    weights = torch.stack([operator.dense() for operator in operators], 1).float().cpu().numpy()
    return [
        weights[n, :, :, : len(target) + 1, : len(source)]
        for n, (source, target) in enumerate(examples)
    ]


def picked(weights: Floats, choice: Choice) -> Floats:
    """(T, S): of (layers, heads, T + 1, S) the attention that was chosen, a row a target piece."""
    if choice.layer >= len(weights) or (choice.head or 0) >= weights.shape[1]:
        raise OptionError(
            f"layer {choice.layer}, head {choice.head}",
            f"layers below {len(weights)} and heads below {weights.shape[1]}",
        )
    layer = weights[choice.layer]
    rows = layer.mean(0) if choice.head is None else layer[choice.head]
    chosen: Floats = rows[1:] if choice.shifted else rows[:-1]
    return chosen


def links(weights: Floats) -> Links:
    """Each target position with the source position of its largest weight, of (T, S)."""
    return {(int(s), t) for t, s in enumerate(weights.argmax(-1))}


def chosen(
    model: nn.Module, training: Sequence[Example], validation: Sequence[Example]
) -> tuple[Choice, list[Choice]]:
    """The choice that agrees best with a lexicon of the training data; and all of them."""
    forwards, backwards = (Lexicon(side) for side in (training, [_turned(e) for e in training]))
    truth = intersection(validation, forwards, backwards)
    weights = attended(model, validation)
    layers, heads = weights[0].shape[:2]
    choices = []
    for layer in range(layers):
        for head in [*range(heads), None] if heads > 1 else [None]:
            for shifted in (False, True):
                choice = Choice(layer, head, shifted)
                found = [links(picked(one, choice)) for one in weights]
                rate = Counts.of(found, truth, truth).error_rate
                choices.append(Choice(layer, head, shifted, round(1 - rate, 4)))
    return max(choices, key=lambda one: one.agreement or 0), choices


def word_weights(weights: Floats, source: Pieces, target: Pieces) -> Floats:
    """(T words, S words) of (T, S) pieces: summed over a source word, the mean over a target's."""
    summed = np.zeros((len(target.ids), len(source.words)))
    np.add.at(summed.T, source.word_of, weights.T)
    means = np.zeros((len(target.words), len(source.words)))
    np.add.at(means, target.word_of, summed)
    shares: Floats = means / np.bincount(target.word_of, minlength=len(target.words))[:, None].clip(
        min=1
    )
    return shares


def word_links(weights: Floats, source: Pieces, target: Pieces) -> Links:
    """The links of words, from weights (T, S) of pieces."""
    return links(word_weights(weights, source, target))


def pharaoh(found: Links) -> str:
    """Links as "0-0 2-1": source word, target word, counted from 0."""
    return " ".join(f"{s}-{t}" for s, t in sorted(found, key=lambda link: link[::-1]))


def from_pharaoh(text: str, first: int = 0) -> tuple[Links, Links]:
    """(sure, possible) links of a line; "3p4" is a possible link. first: the first word's number.

    Raises: OptionError for what is no link.
    """
    sure: Links = set()
    possible: Links = set()
    for link in text.split():
        into, mark = (possible, "p") if "p" in link else (sure, "-")
        try:
            source, target = map(int, link.split(mark))
        except ValueError:
            raise OptionError(f"the link {link!r}", 'links such as "3-4" or "3p4"') from None
        into.add((source - first, target - first))
    return sure, possible


@dataclass(frozen=True)
class SoftAlignment:
    """What each piece of a target attended to in its source; weights as `attended` gives them."""

    source: Pieces
    target: Pieces
    weights: Floats
    choice: Choice
    model: str = ""

    @property
    def words(self) -> Floats:
        """(T words, S words): the chosen attention."""
        return word_weights(picked(self.weights, self.choice), self.source, self.target)

    def lines(self) -> list[str]:
        """For the terminal: a line for each target word, with what it attended to most."""
        words = self.words
        wide = max((len(word) for word in self.target.words), default=0)
        rows = [" ".join(self.source.words), " ".join(self.target.words), ""]
        for word, row in zip(self.target.words, words, strict=True):
            best = [s for s in np.argsort(-row, kind="stable")[:3] if row[s] >= 0.05]
            shown = ", ".join(f"{self.source.words[s]} {row[s]:.0%}" for s in best)
            bar = "▇" * round(float(row.max()) * 10)
            rows.append(f"  {word:{wide}}  {bar:10}  {shown}")
        return [*rows, "", f"Alignment: {pharaoh(links(words))}", f"Attention: {self.choice}"]

    def as_json(self) -> dict[str, Any]:
        """Words, weights, links, and which attention it is."""
        words = self.words
        return {
            "source": self.source.words,
            "target": self.target.words,
            "alignment": pharaoh(links(words)),
            "weights": [[round(float(w), 4) for w in row] for row in words],
            "attention": asdict(self.choice),
        }

    def record(self) -> Record:
        """All layers and heads, piece by piece, for the page."""
        beginning = "<s>"
        queries = [beginning, *self.target.texts]
        if not self.choice.shifted:  # named by what they predict
            queries = [*self.target.texts, "</s>"]
        calls = [
            Call.from_weights(
                layer.astype(np.float32), name=f"decoder {n}, cross", layer=n, query_text=1
            )
            for n, layer in enumerate(self.weights)
        ]
        return Record(
            title=" ".join(self.target.words),
            model=self.model,
            texts=[_text(self.source.texts, "source"), _text(queries, "target")],
            calls=calls,
            notes=[f"The alignment is read from {self.choice}."],
        )


def _text(pieces: Sequence[str], name: str) -> Text:
    special = [piece in ("<s>", "</s>") for piece in pieces]
    spaces = [piece.startswith("▁") or flag for piece, flag in zip(pieces, special, strict=True)]
    return Text([piece.lstrip("▁") or "▁" for piece in pieces], special, spaces, name)


def _turned(example: Example) -> Example:
    return Example(example.target, example.source)


def _batched(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    longest = max((len(side) for example in examples for side in example), default=1)
    size = max(1, _PIECES // longest)
    return (examples[start : start + size] for start in range(0, len(examples), size))
