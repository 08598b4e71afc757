"""Files that are written whole or not at all, and read with errors that say why not."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from regard.errors import FileFormatError

__all__ = ["decoded", "read_bytes", "replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of the file once the block has ended well.

    Of a link it is the file that it leads to. A pipe or a device is written to as it is.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            yield stream
        return
    target = Path(os.path.realpath(target))
    draft = target.with_name(f".{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as stream:
            yield stream
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """What a file holds. Raises: FileFormatError."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise FileFormatError(f"{path} cannot be read: {reason}") from error


def decoded(content: bytes, name: str) -> str:
    """The text of a file of this name, in UTF-8. Raises: FileFormatError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{name} is not text in UTF-8", "a plain text file") from error
