"""From tokens to words: what each word of a text attends to.

Words are gathered by their spelling, upper or lower case alike: a word's attention is the mean
over its tokens in all its occurrences, and what another word receives is the sum over its own.
Shares are of all attention, on special tokens and on the word itself too: those shown need not add
up to 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.operator import AttentionWeights
from regard.recording.text import Passage, spelled, words

__all__ = ["FUNCTION_WORDS", "Link", "links"]

# of English; of contractions what stands before the apostrophe
_ENGLISH = """
    a about above after again against all also am an and any are aren as at be because been before
    being below between both but by can could couldn did didn do does doesn doing don down during
    each either else ever every few for from further had hadn has hasn have haven having he her here
    hers him his how i if in into is isn it its itself just let like may me might more most must my
    neither never no nor not now of off on once one only or other our out over own per rather same
    shall she should shouldn since so some such than that the their theirs them then there these
    they this those though through to too under until up upon us very was wasn we were weren what
    when where whether which while who whom whose why will with without won would wouldn yet you
    your
"""
FUNCTION_WORDS = frozenset(_ENGLISH.split())

_AT_ONCE = 1 << 22  # weights held at a time: 16 MB in float32


@dataclass(frozen=True)
class Link:
    """A word and what it attends to.

    count: how often it occurs. to: (word, share of the attention), the largest first.
    itself: the share on its own occurrences. special: the share on special tokens.
    """

    word: str
    count: int
    to: tuple[tuple[str, float], ...]
    itself: float
    special: float


def links(
    weights: Sequence[AttentionWeights], passage: Passage, top: int, content: bool = True
) -> list[Link]:
    """What each content word attends to, the most frequent word first, then in order of the text.

    Content words have two letters or more and are not in FUNCTION_WORDS (a list for English).

    Args:
        weights: operators of shape (1, H, L, L) or (H, L, L); their heads are averaged.
        top: how many words to name for each.
        content: name content words only, not function words and punctuation.
    """
    spans = words(passage)
    spellings = [spelled(passage, span).lower() for span in spans]
    vocabulary = list(dict.fromkeys(spellings))
    owner = np.full(len(passage), -1)  # each token's word; special tokens have none
    for (start, stop), spelling in zip(spans, spellings, strict=True):
        owner[start:stop] = vocabulary.index(spelling)
    is_content = np.array([_is_content(word) for word in vocabulary], bool)
    counts = [spellings.count(word) for word in vocabulary]
    order = sorted(np.flatnonzero(is_content).tolist(), key=lambda word: -counts[word])
    shown = is_content if content else np.ones(len(vocabulary), bool)
    found = []
    for word in order:
        shares, special = _shares(weights, np.flatnonzero(owner == word), owner, len(vocabulary))
        others = np.where(shown, shares, 0)
        others[word] = 0
        best = np.argsort(-others, kind="stable")[:top]
        to = tuple((vocabulary[n], float(others[n])) for n in best if others[n] > 0)
        found.append(Link(vocabulary[word], counts[word], to, float(shares[word]), special))
    return found


def _is_content(word: str) -> bool:
    letters = sum(character.isalpha() for character in word)
    short = letters < 2 and word.isascii()
    return letters > 0 and not short and re.split("['’]", word)[0] not in FUNCTION_WORDS


def _shares(
    weights: Sequence[AttentionWeights],
    queries: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64],
    size: int,
) -> tuple[npt.NDArray[np.float64], float]:
    """The mean over operators, heads and queries: (size,) for the words, and on special tokens."""
    total = np.zeros(len(owner))
    for rows in _rows(weights, queries):
        total += rows.reshape(-1, len(owner)).sum(axis=0, dtype=np.float64) / len(queries)
    total /= sum(int(np.prod(operator.shape[:-2])) for operator in weights)
    text = owner >= 0
    shares = np.bincount(owner[text], total[text], size).astype(np.float64)
    return shares, float(total[~text].sum())


def _rows(
    weights: Sequence[AttentionWeights], queries: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.float32]]:
    for operator in weights:
        step = max(1, _AT_ONCE // (operator.shape[-1] * operator.shape[-3]))
        for start in range(0, len(queries), step):
            yield as_numpy(operator.rows(queries[start : start + step]))
