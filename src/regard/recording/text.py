"""Texts and the models that read them: from a local Hugging Face directory to attention.

Nothing is downloaded. transformers is imported when a model is loaded, not before.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regard.errors import ModelError, OptionError
from regard.recording.models import first_line, pretrained
from regard.recording.record import Recording
from regard.recording.watching import watch
from regard.viewer.text import CLOSING

__all__ = ["Passage", "Reader", "load", "readable", "words"]

_JOINS = frozenset("'’")
_FIRST_IDEOGRAPH = "\u2e80"  # from here on, a character is a word
_UNLIMITED = 1_000_000  # tokenizers write a huge number where they know no limit
_OVERLAP = 4  # a part repeats this fraction, one in so many, of the part before


@dataclass(frozen=True)
class Passage:
    """A text, or the part of a longer one, that a model reads at once; L tokens.

    ids: (L,) the tokens' numbers. tokens: their texts, readable. special: (L,), True for what is no
    text, such as [CLS]. space_before: (L,), whether a space stands before the token.
    part: which part of the text this is, from 1; parts: how many there are; length: how many tokens
    the whole text has, special ones not counted.
    """

    ids: npt.NDArray[np.int64]
    tokens: tuple[str, ...]
    special: npt.NDArray[np.bool_]
    space_before: npt.NDArray[np.bool_]
    part: int = 1
    parts: int = 1
    length: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Reader:
    """A model with its tokenizer. limit: the most tokens that it reads at once, or None."""

    name: str
    tokenizer: Any
    model: Any
    limit: int | None
    notes: tuple[str, ...] = ()

    def passages(self, text: str) -> list[Passage]:
        """The text in parts that the model can read; each begins with a quarter of the last one.

        Raises: OptionError when there is nothing to read, ModelError when no token of text fits.
        """
        limit = self.limit or _UNLIMITED
        special = self.tokenizer.num_special_tokens_to_add()
        if limit <= special:
            raise ModelError(f"{self.name} reads {limit} tokens at once, and {special} are special")
        encoded = self.tokenizer(
            text,
            truncation=True,
            max_length=limit,
            stride=limit // _OVERLAP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        columns = (encoded[name] for name in _ENCODED)
        rows = [tuple(map(np.asarray, row)) for row in zip(*columns, strict=True)]
        covered = [offsets[special == 0] for _, special, offsets in rows]
        if not sum(map(len, covered)):
            raise OptionError("a text without words", "at least one word")
        # what an earlier part has read up to is not counted again
        ends = [0, *(int(part.max(initial=0)) for part in covered)]
        length = sum(
            int((part[:, 0] >= end).sum()) for part, end in zip(covered, ends, strict=False)
        )
        return [
            dataclasses.replace(self._passage(text, *row), part=n, parts=len(rows), length=length)
            for n, row in enumerate(rows, 1)
        ]

    def read(self, passage: Passage) -> Recording:
        """What attends to what while the model reads the passage. Raises ModelError."""
        import torch

        ids = torch.from_numpy(passage.ids)[None]
        try:
            with torch.no_grad(), watch(self.model, tokens=list(passage.tokens)) as seen:
                self.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise ModelError(f"{self.name} failed to read the text: {first_line(error)}") from error
        if not len(seen):
            raise ModelError(
                f"no attention of {self.name} could be seen; not seen: {seen.unseen or 'nothing'}",
                "a model with attention that PyTorch or transformers computes",
            )
        return seen

    def _passage(self, text: str, ids: Any, special: Any, offsets: Any) -> Passage:
        tokens, _ = readable(self.tokenizer.convert_ids_to_tokens(ids.tolist()))
        spaces = np.ones(len(ids), bool)
        end = -1
        for n in np.flatnonzero(special == 0):
            start, stop = offsets[n].tolist()
            spaces[n] = end < 0 or any(c.isspace() for c in text[end : start + 1])
            end = stop
        return Passage(ids.astype(np.int64), tuple(tokens), special.astype(bool), spaces)


_ENCODED = ("input_ids", "special_tokens_mask", "offset_mapping")


def load(directory: str | Path, name: str | None = None) -> Reader:
    """A model and its tokenizer from a local directory, as `save_pretrained` writes it.

    name: what to call the model; its directory's name, if left out. Of an encoder-decoder model,
    the encoder is read. The reader's notes say so, and what else is unusual.

    Raises: ModelError when the directory is missing or holds no usable model.
    """
    from transformers import AutoTokenizer

    path = Path(directory)
    tokenizer, model, notes = pretrained(path, AutoTokenizer.from_pretrained, _WANTED)
    if not any((path / file).is_file() for file in tokenizer.vocab_files_names.values()):
        raise ModelError(f"no tokenizer in {path}", _WANTED)  # it was made up, without words
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer in {path} is not a fast one", "a tokenizer.json")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
        notes.append("Of this encoder-decoder model, the encoder was read.")
    name = name or path.resolve().name
    return Reader(name, tokenizer, model, _limit(tokenizer, model), tuple(notes))


_WANTED = "a Hugging Face directory: config.json, tokenizer.json and the weights"


def _limit(tokenizer: Any, model: Any) -> int | None:
    """The most tokens that both the tokenizer and the positions of the model allow."""
    positions = getattr(model.config, "max_position_embeddings", None) or _UNLIMITED
    limit = min(int(tokenizer.model_max_length), int(positions))
    return limit if limit < _UNLIMITED else None


def readable(tokens: Sequence[str]) -> tuple[list[str], list[bool]]:
    """Tokens as a vocabulary has them, as text: (texts, whether a space stands before each).

    "Ġ" (byte-level BPE, whose bytes become characters again) and "▁" (SentencePiece) are spaces;
    "##" (WordPiece) is kept, since a reader of single pieces needs it.
    """
    if any(token[:1] in ("Ġ", "Ċ") for token in tokens):
        whole = [_from_bytes(token) for token in tokens]
    elif any("▁" in token for token in tokens):
        whole = [token.replace("▁", " ").replace("<0x0A>", "\n") for token in tokens]
    else:
        return list(tokens), [not t.startswith("##") and t[:1] not in CLOSING for t in tokens]
    before = ["\n", *whole]
    spaces = [t[:1].isspace() or b[-1:].isspace() for t, b in zip(whole, before, strict=False)]
    return [text.strip() or ("↵" if "\n" in text else "␣") for text in whole], spaces


def _from_bytes(token: str) -> str:
    """A token of byte-level BPE as text; what is no whole character becomes "�"."""
    table = _byte_table()
    if not all(character in table for character in token):
        return token
    return bytes(table[character] for character in token).decode(errors="replace")


@functools.cache
def _byte_table() -> dict[str, int]:
    """The character that GPT-2's vocabulary writes for each byte: itself, if it can be printed."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(256 + n): b for n, b in enumerate(hidden)}


def words(passage: Passage) -> list[tuple[int, int]]:
    """The (first, last + 1) tokens of each word, in order; special tokens are in none.

    A token continues a word when no space stands between and letters, digits or an apostrophe meet:
    "don", "'", "t" is one word, "high", "-", "water" are three.
    """
    found: list[tuple[int, int]] = []
    for n in np.flatnonzero(~passage.special).tolist():
        last = found[-1] if found else (0, 0)
        adjacent = last[1] == n and n > 0 and not passage.space_before[n]
        if adjacent and _meet(passage.tokens[n - 1], passage.tokens[n]):
            found[-1] = (last[0], n + 1)
        else:
            found.append((n, n + 1))
    return found


def spelled(passage: Passage, word: tuple[int, int]) -> str:
    """A word's text."""
    return "".join(token.removeprefix("##") for token in passage.tokens[slice(*word)])


def _meet(left: str, right: str) -> bool:
    if right.startswith("##"):
        return True
    ends = left[-1:], right[:1]
    return all((c.isalnum() and c < _FIRST_IDEOGRAPH) or c in _JOINS for c in ends if c)
