"""Pronunciation: from the letters of an English word to its sounds.

    regard train pronunciation --output runs/sounds
    regard predict pronunciation --checkpoint runs/sounds attention

Data: the CMU pronouncing dictionary, without stress. Metric: word error rate. Letters and sounds
follow one another in the same order, so attention that reads properly is near-monotonic: that is
measured too.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
from torch import nn

from regard.tasks.alignment import attended, picked
from regard.tasks.configuration import Range
from regard.tasks.fetch import Published
from regard.tasks.sequences import Pair, SequenceSettings, SequenceTask, SequenceUse
from regard.tasks.vocabulary import Vocabulary

__all__ = ["Pronunciation", "PronunciationSettings"]

_DICTIONARY = Published(
    "cmudict/cmudict.dict",
    "https://raw.githubusercontent.com/cmusphinx/cmudict/0f8072f814306c5ee4fbf992ed853601b12c01f9/cmudict.dict",
    "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
)
_SHARES = {"test": 0.05, "validation": 0.02}


@dataclass(frozen=True)
class PronunciationSettings(SequenceSettings):
    """What the training of a reader can be told."""

    epochs: Annotated[int, "stop after so many passes over the data", Range(1)] = 20
    layers: Annotated[int, "layers of a transformer's encoder, and of its decoder", Range(1)] = 3
    feedforward: Annotated[int, "inner size of a transformer's feed-forward parts", Range(1)] = 512
    dropout: Annotated[float, "share of numbers that are dropped in training", Range(0, 1)] = 0.1
    tokens: Annotated[int, "tokens of a batch, on its longer side, padding included", Range(1)] = (
        4096
    )
    rate: Annotated[float, "learning rate at its peak", Range(0)] = 3e-3


class Pronunciation(SequenceTask[PronunciationSettings]):
    """From letters to sounds."""

    name = "pronunciation"
    settings_type = PronunciationSettings
    splits = ("test", "validation")

    def learn_vocabulary(self) -> Vocabulary:
        """Letters and sounds: small and capital ones, so no name is used twice."""
        symbols = {
            symbol for pair in self.pairs("train") for text in pair for symbol in text.split()
        }
        return Vocabulary.of_symbols(sorted(symbols))

    def spelled(self, text: str) -> str:
        """A word as its letters, apart."""
        return " ".join(text.strip().lower().replace(" ", ""))

    def pairs(self, split: str) -> list[Pair]:
        """Words and their sounds, a pair for each way to say a word."""
        words, sounds = _dictionary(), _split()
        return [(self.spelled(word), one) for word in sounds[split] for one in words[word]]

    def evaluate(self, model: nn.Module, split: str, use: SequenceUse) -> dict[str, Any]:
        """Errors in words, errors in sounds, and how monotonic attention is.

        A word is right if it is said in one of the ways that the dictionary has.
        """
        words, dictionary = _split()[split], _dictionary()
        start = time.perf_counter()
        answers = self.predict(model, words, use)
        seconds = time.perf_counter() - start
        ways = [[one.split() for one in dictionary[word]] for word in words]
        said = [answer.split() for answer in answers]
        nearest = [
            min((distance(one, way), len(way)) for way in each)
            for one, each in zip(said, ways, strict=True)
        ]
        wrong = sum(one not in each for one, each in zip(said, ways, strict=True))
        sounds = sum(length for _, length in nearest)
        return {
            "word_error_rate": round(wrong / len(words), 4),
            "sound_error_rate": round(sum(errors for errors, _ in nearest) / sounds, 4),
            "words": len(words),
            "seconds": round(seconds, 2),
            "attention": self._monotonicity(model, split),
        }

    def _monotonicity(self, model: nn.Module, split: str) -> dict[str, Any] | None:
        """How often the letter of the largest weight does not lie before that of the last sound."""
        if self.settings.model == "rnn-without-attention":
            return None
        examples = self.examples(split)
        steps, forwards, whole = 0, 0, 0
        for weights in attended(model, examples):
            moves = np.diff(picked(weights, self.choice).argmax(-1))
            steps, forwards = steps + len(moves), forwards + int((moves >= 0).sum())
            whole += bool((moves >= 0).all())
        return {
            "chosen": str(self.choice),
            "monotonic_steps": round(forwards / max(steps, 1), 4),
            "monotonic_words": round(whole / len(examples), 4),
        }


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """How many sounds must be put in, left out or replaced (Levenshtein, 1965)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1]


@cache
def _dictionary() -> dict[str, list[str]]:
    """Every word with the ways to say it, "HH AH L OW", without stress."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in _DICTIONARY.lines():
        entry, _, sounds = line.partition("#")[0].strip().partition(" ")
        word, plain = re.sub(r"\(\d+\)$", "", entry), re.sub(r"\d", "", sounds)
        if plain not in found[word]:
            found[word].append(plain)
    return dict(found)


@cache
def _split() -> dict[str, list[str]]:
    """The words of each split, drawn once and for all; the ways to say a word stay together."""
    words = sorted(_dictionary())
    order = np.random.default_rng(2026).permutation(len(words)).tolist()
    splits, start = {}, 0
    for name, share in _SHARES.items():
        stop = start + round(share * len(words))
        splits[name] = sorted(words[n] for n in order[start:stop])
        start = stop
    return splits | {"train": sorted(words[n] for n in order[start:])}
