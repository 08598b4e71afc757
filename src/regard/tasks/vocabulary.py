"""Texts to numbers and back: subwords learned by byte-pair encoding, or a list of symbols."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from regard.errors import FileFormatError

__all__ = ["BEGIN", "END", "PAD", "Pieces", "Vocabulary"]

PAD, BEGIN, END = 0, 1, 2  # what stands at the first places of every vocabulary
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_SPACE = "▁"


@dataclass(frozen=True)
class Pieces:
    """A text in pieces: their numbers, their texts, and the word that each belongs to.

    Words are what spaces separate, numbered from 0; `words` are their texts.
    """

    ids: list[int]
    texts: list[str]
    word_of: list[int]
    words: list[str]


class Vocabulary:
    """The pieces of texts and their numbers: padding, begin, end, unknown, and then the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def learned(cls, texts: Iterable[str], size: int, *, lowercase: bool = False) -> Vocabulary:
        """`size` subwords by byte-pair encoding (Sennrich et al., 2016) of these texts.

        A space is part of the word after it, so texts come back as they were. Punctuation is never
        part of a word, apart from apostrophes and hyphens within. lowercase: ignore capitals.
        """
        tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL[3]))
        steps: list[normalizers.Normalizer] = [normalizers.NFC()]
        steps += [normalizers.Lowercase()] if lowercase else []
        tokenizer.normalizer = normalizers.Sequence(steps)
        apart = pre_tokenizers.Split(Regex(rf"[^\w{_SPACE}'’-]"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), apart])
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=_SPECIAL, show_progress=False, min_frequency=2
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def of_symbols(cls, symbols: Sequence[str]) -> Vocabulary:
        """These symbols, which spaces separate in a text."""
        numbers = {symbol: n for n, symbol in enumerate([*_SPECIAL, *symbols])}
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=_SPECIAL[3]))
        tokenizer.add_special_tokens(_SPECIAL)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """What `to_json` gave. Raises FileFormatError."""
        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # tokenizers raise nothing more exact
            raise FileFormatError(f"this is no vocabulary: {error}") from error

    def to_json(self) -> str:
        """All of it as text."""
        return str(self._tokenizer.to_str())

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The numbers of each text's pieces."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of these numbers; padding, begin and end say nothing."""
        return list(self._tokenizer.decode_batch([list(row) for row in rows]))

    def pieces(self, text: str) -> Pieces:
        """A text in pieces, each with the word that it belongs to."""
        words = text.split()
        encoding = self._tokenizer.encode(" ".join(words))
        starts = [0]  # of each word, and of one after the last
        for word in words:
            starts.append(starts[-1] + len(word) + 1)
        word_of, at = [], 0
        for _, stop in encoding.offsets:
            while at + 1 < len(words) and stop >= starts[at + 1]:
                at += 1
            word_of.append(at)
        return Pieces(encoding.ids, encoding.tokens, word_of, words)
