"""The tokens that a model read, as a person would read them: words, or patches of a picture."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from regard.errors import FileFormatError, ShapeError

CLOSING = frozenset(".,;:!?)]}%’”'…、。，")
FORMATS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class Picture:
    """An image that was cut into a grid of patches, each of which is a token.

    data: the bytes of a PNG or JPEG file, cut as the model saw it. The page holds them as they are.
    rows, columns: of the grid. first: the token that is the patch at top left; the others follow
        row by row.

    Raises FileFormatError for other files, ShapeError for a grid without patches.
    """

    data: bytes
    rows: int
    columns: int
    first: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.first < 0:
            raise ShapeError(
                f"a grid of {self.rows} × {self.columns} patches from token {self.first}",
                "one patch at least, from token 0 or later",
            )
        self.uri()

    @property
    def end(self) -> int:
        """The token after the last patch."""
        return self.first + self.rows * self.columns

    def uri(self) -> str:
        """The image as a data: address."""
        for start, kind in FORMATS.items():
            if self.data.startswith(start):
                return f"data:{kind};base64,{base64.b64encode(self.data).decode('ascii')}"
        raise FileFormatError(
            f"a picture that begins with {self.data[:8]!r}", "the bytes of a PNG or JPEG file"
        )


@dataclass(frozen=True)
class Text:
    """The tokens that one side of a call stands for, as a person would read them.

    tokens: the text of each token, without marks such as Ġ or ▁. A leading "##" marks a piece that
        continues a word; labels keep it, the running text drops it.
    special: True for tokens that are no text ([CLS], padding, end of text): "hide sinks" hides
        them.
    space_before: True where a space goes between this token and the one before it.
    name: shown above the text when a record has several ("source", "target").
    picture: the image of which some of the tokens are patches, or None.

    Raises ShapeError when the three differ in length, or the picture has patches past the end.
    """

    tokens: Sequence[str]
    special: Sequence[bool]
    space_before: Sequence[bool]
    name: str = "text"
    picture: Picture | None = None

    def __post_init__(self) -> None:
        sizes = len(self.tokens), len(self.special), len(self.space_before)
        if len(set(sizes)) != 1:
            raise ShapeError(
                f"tokens, special and space_before of text {self.name!r} have lengths {sizes}",
                "three sequences of one length",
                "use Text.guess(tokens) if only the tokens are known",
            )
        if self.picture is not None and self.picture.end > len(self.tokens):
            raise ShapeError(
                f"patches up to token {self.picture.end - 1} in {self.name!r}",
                f"{len(self.tokens)} tokens at most",
                "count special tokens such as [CLS] too",
            )

    @classmethod
    def guess(cls, tokens: Sequence[str], name: str = "text") -> Text:
        """A text of which only the tokens are known: no space before "##…" and closing marks.

        Whatever looks like [CLS], <s> or <|end|> counts as special.
        """
        looks = [len(t) > 2 and (t[0] + t[-1]) in ("[]", "<>") for t in tokens]
        spaces = [not t.startswith("##") and t[:1] not in CLOSING for t in tokens]
        return cls(tokens, looks, spaces, name)

    @classmethod
    def of_picture(
        cls,
        data: bytes,
        rows: int,
        columns: int,
        *,
        before: Sequence[str] = ("[CLS]",),
        after: Sequence[str] = (),
    ) -> Text:
        """The patches of an image, row by row, with special tokens before and after them.

        data: the bytes of a PNG or JPEG file. Raises as `Picture` does.
        """
        patches = [f"patch {row},{column}" for row in range(rows) for column in range(columns)]
        tokens = [*before, *patches, *after]
        special = [n < len(before) or n >= len(tokens) - len(after) for n in range(len(tokens))]
        picture = Picture(data, rows, columns, first=len(before))
        return cls(tokens, special, [True] * len(tokens), "image", picture)
