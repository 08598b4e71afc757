"""Sentences whose words were linked by hand: 100 German–English and 447 English–French pairs.

The first are from the debates of the European, the second from those of the Canadian parliament:
far from what a model of captions has read.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from dataclasses import dataclass

from regard.errors import OptionError
from regard.tasks.alignment import from_pharaoh
from regard.tasks.fetch import Published
from regard.tasks.lexicon import Links

__all__ = ["Linked", "linked"]

_EUROPARL = Published(
    "word_alignment/German-English_WordAlignment.zip",
    "https://raw.githubusercontent.com/bicici/SMTData/master/German-English_WordAlignment.zip",
    "8e5a80cf26e7f48e675960c097069c29db5ed50d59fef1cd264571a2ee596d7d",
)
_HANSARDS = "https://raw.githubusercontent.com/neulab/awesome-align/master/examples/"
_HANSARDS_TEXT = Published(
    "word_alignment/examples/enfr.src-tgt",
    f"{_HANSARDS}enfr.src-tgt",
    "19d56c3de3634ab8420d553df4d9dfd849502b18225f1599382e98a6de9cfc72",
)
_HANSARDS_GOLD = Published(
    "word_alignment/examples/enfr.gold",
    f"{_HANSARDS}enfr.gold",
    "0a11b51cba8a92a7608fb00884cb3cf50fe0fcc4e4aa92d70624fd11451c4ddd",
)


@dataclass(frozen=True)
class Linked:
    """A pair of sentences, words apart, with the links that are sure and the possible ones."""

    source: str
    target: str
    sure: Links
    possible: Links

    def turned(self) -> Linked:
        """The same from target to source."""
        sides = ({(t, s) for s, t in side} for side in (self.sure, self.possible))
        return Linked(self.target, self.source, *sides)


def linked(languages: tuple[str, str]) -> tuple[str, list[Linked]]:
    """What the pairs are, and the pairs, in this direction.

    Raises: OptionError where there are none, FileFormatError where the files cannot be had.
    """
    there = {("de", "en"): _europarl, ("en", "fr"): _hansards}
    if languages in there:
        return there[languages]()
    if languages[::-1] in there:
        name, pairs = there[languages[::-1]]()
        return name, [pair.turned() for pair in pairs]
    raise OptionError(
        f"no gold alignments from {languages[0]} to {languages[1]}", "de-en, en-de, en-fr or fr-en"
    )


def _europarl() -> tuple[str, list[Linked]]:
    """Its links are lines of sentence, source word, target word and S for sure."""
    with zipfile.ZipFile(io.BytesIO(_EUROPARL.read())) as archive:
        german, english, rows = (
            archive.read(f"German-English_WordAlignment/{name}").decode("utf-8-sig").splitlines()
            for name in ("test.de", "test.en", "de-en.ref.wa")
        )
    found: dict[int, Links] = defaultdict(set)
    for row in rows:
        if row.strip():
            sentence, source, target = map(int, row.split()[:3])
            found[sentence].add((source, target))
    texts = enumerate(zip(german, english, strict=True), 1)
    return "Europarl", [Linked(de, en, found[n], found[n]) for n, (de, en) in texts]


def _hansards() -> tuple[str, list[Linked]]:
    """Its links are Pharaoh's, numbered from 1."""
    pairs = []
    for text, row in zip(_HANSARDS_TEXT.lines(), _HANSARDS_GOLD.lines(), strict=True):
        source, target = text.split("|||")
        pairs.append(Linked(source.strip(), target.strip(), *from_pharaoh(row, first=1)))
    return "Hansards", pairs
