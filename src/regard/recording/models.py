"""Models on disk, as Hugging Face saves them. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from regard.errors import ModelError

__all__ = ["first_line", "pretrained"]

_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def pretrained(
    directory: str | Path, load_reader: Callable[..., Any], wanted: str
) -> tuple[Any, Any, list[str]]:
    """(what turns an input into tensors, the model, notes) from a local directory.

    load_reader: such as AutoTokenizer.from_pretrained. wanted: what the directory should hold.

    Raises: ModelError when the directory is missing or holds no usable model.
    """
    path = Path(directory)
    if not (path / "config.json").is_file():
        missing = "config.json is missing" if path.is_dir() else "there is no such directory"
        raise ModelError(f"no model in {path}: {missing}", wanted)
    from transformers import AutoModel

    try:
        reader = load_reader(str(path), **_LOCAL)
        model, report = AutoModel.from_pretrained(str(path), output_loading_info=True, **_LOCAL)
    except Exception as error:  # whatever a foreign file can bring about
        reason = first_line(error)
        raise ModelError(f"the model in {path} cannot be loaded: {reason}", wanted) from error
    random = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if not random:
        return reader, model.eval(), []
    note = (
        f"{len(random)} parameters are not in the model's file and were made at random "
        f"({random[0]}, …): what follows may mean nothing."
    )
    return reader, model.eval(), [note]


def first_line(error: Exception) -> str:
    """What went wrong, without the rest of a long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
