"""Machine translation, the task that attention was invented for.

    regard train translation --output runs/en-de
    regard predict translation --checkpoint runs/en-de "A dog runs across a meadow."

Data: Multi30k, or any parallel text. Metric: BLEU. The models are those of "Attention Is All You
Need" (Vaswani et al., 2017) and of Bahdanau, Cho and Bengio (2015), with attention and without.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import nn

from regard.errors import FileFormatError, OptionError
from regard.tasks import bleu, multi30k
from regard.tasks.alignment import Counts, attended, links, picked, word_links
from regard.tasks.batches import Example
from regard.tasks.configuration import Range
from regard.tasks.fetch import read_lines
from regard.tasks.gold import linked
from regard.tasks.lexicon import Lexicon, intersection
from regard.tasks.sequences import Pair, SequenceSettings, SequenceTask, SequenceUse
from regard.tasks.vocabulary import Vocabulary

__all__ = ["Translation", "TranslationSettings"]

_GOLD = "gold_alignments"
_HELD_OUT = 1000  # pairs of a user's own text to validate with, but no more than a twentieth


@dataclass(frozen=True)
class TranslationSettings(SequenceSettings):
    """What the training of a translator can be told."""

    languages: Annotated[str, "from and to: en, de, fr or cs; of your own text, any"] = "en-de"
    source: Annotated[Path | None, "your own text to translate from, a sentence a line"] = None
    target: Annotated[Path | None, "its translation, line by line"] = None
    pieces: Annotated[int, "subwords of the vocabulary, which both languages share", Range(1)] = (
        8000
    )
    lowercase: Annotated[bool, "ignore capitals, and write none"] = False
    rate: Annotated[float, "learning rate at its peak", Range(0)] = 3e-3


class Translation(SequenceTask[TranslationSettings]):
    """From one language to another."""

    name = "translation"
    settings_type = TranslationSettings
    splits = (*multi30k.TESTS, "validation", _GOLD)

    @property
    def languages(self) -> tuple[str, str]:
        """From and to. Raises OptionError."""
        source, _, target = self.settings.languages.partition("-")
        known = self.settings.source is not None or {source, target} <= set(multi30k.LANGUAGES)
        if not source or not target or source == target or not known:
            raise OptionError(
                f"--languages {self.settings.languages}",
                f"two of {', '.join(multi30k.LANGUAGES)}, as in en-de",
                "give text of other languages with --source and --target",
            )
        return source, target

    def learn_vocabulary(self) -> Vocabulary:
        """Subwords of both sides of the training data."""
        texts = (text for pair in self.pairs("train") for text in pair)
        return Vocabulary.learned(texts, self.settings.pieces, lowercase=self.settings.lowercase)

    def pairs(self, split: str) -> list[Pair]:
        """Multi30k's sentences, or those of the user's own text."""
        languages, settings = self.languages, self.settings
        if settings.source is None and settings.target is None:
            return list(zip(*(multi30k.captions(split, one) for one in languages), strict=True))
        if settings.source is None or settings.target is None:
            raise OptionError("one of --source and --target", "both, or neither for Multi30k")
        return _own(settings.source, settings.target, settings.seed)[split != "train"]

    def evaluate(self, model: nn.Module, split: str, use: SequenceUse) -> dict[str, Any]:
        """BLEU, its speed, and how far attention agrees with counted or gold alignments."""
        if split == _GOLD:
            return self._against_gold(model)
        if self.settings.source is not None and split != "validation":
            raise OptionError(f"--split {split} for a model of your own text", "validation")
        pairs = self.pairs(split)
        sources, references = ([pair[side] for pair in pairs] for side in (0, 1))
        start = time.perf_counter()
        rows = self.decode(model, self.vocabulary.encode(sources), use)
        seconds = time.perf_counter() - start
        answers = self.vocabulary.decode(rows)
        return {
            **bleu.figures(sources, answers, references, self.languages[1]),
            "sentences": len(pairs),
            "tokens_per_second": round(sum(map(len, rows)) / seconds, 1),
            "seconds": round(seconds, 2),
            "alignment": self._against_lexicon(model, split),
            "answers": answers,
        }

    def _against_lexicon(self, model: nn.Module, split: str) -> dict[str, Any] | None:
        """How far attention agrees with IBM Model 1, both directions intersected."""
        if self.settings.model == "rnn-without-attention":
            return None
        examples = self.examples(split)
        truth = intersection(examples, *self._lexicons())
        found = [links(picked(one, self.choice)) for one in attended(model, examples)]
        counts = Counts.of(found, truth, truth)
        return {"against": "IBM Model 1", "attention": str(self.choice), **counts.figures()}

    def _against_gold(self, model: nn.Module) -> dict[str, Any]:
        """Alignment error rates on text of another domain, of attention and of IBM Model 1."""
        name, gold = linked(self.languages)
        sides = [(self.vocabulary.pieces(g.source), self.vocabulary.pieces(g.target)) for g in gold]
        examples = [Example(source.ids, target.ids) for source, target in sides]
        weights = [picked(one, self.choice) for one in attended(model, examples)]
        counted = intersection(examples, *self._lexicons())
        found = [word_links(one, *side) for one, side in zip(weights, sides, strict=True)]
        words = [
            {(source.word_of[s], target.word_of[t]) for s, t in one}
            for one, (source, target) in zip(counted, sides, strict=True)
        ]
        truth = [one.sure for one in gold], [one.possible for one in gold]
        return {
            "gold": f"{name}, {len(gold)} pairs: not the domain of the training data",
            "attention": str(self.choice),
            "alignment": Counts.of(found, *truth).figures(),
            "ibm_model_1": Counts.of(words, *truth).figures(),
        }

    def _lexicons(self) -> tuple[Lexicon, Lexicon]:
        training = self.examples("train")
        return Lexicon(training), Lexicon([Example(t, s) for s, t in training])


@cache
def _own(source: Path, target: Path, seed: int) -> tuple[list[Pair], list[Pair]]:
    """A user's own text: pairs to train on, and pairs to validate with. Empty lines are left out.

    Raises: FileFormatError for files that cannot be read or do not fit together.
    """
    sides = read_lines(source), read_lines(target)
    if len(sides[0]) != len(sides[1]):
        raise FileFormatError(
            f"{source} has {len(sides[0])} lines and {target} has {len(sides[1])}",
            "the translation of each line on the line of the same number",
        )
    pairs: list[Pair] = [
        (s.strip(), t.strip()) for s, t in zip(*sides, strict=True) if s.strip() and t.strip()
    ]
    held = min(_HELD_OUT, len(pairs) // 20)
    if not held:
        raise FileFormatError(f"{source} and {target} hold {len(pairs)} pairs", "20 at least")
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    return [pairs[n] for n in sorted(order[held:])], [pairs[n] for n in sorted(order[:held])]
