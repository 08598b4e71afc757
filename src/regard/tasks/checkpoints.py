"""Checkpoints: directories that are whole or not there, and that cannot run code.

    step-00001500/
        weights.safetensors   the model, as it is used
        state.pt              the rest of the training's state: numbers and tensors only
        task.json             the task's name, its settings, the step and the validation loss
        vocabulary.json …     the task's assets
        manifest.json         size and checksum of each of these files

A checkpoint is written under another name, and renamed when all of it is on the disk. What was cut
short or changed afterwards does not agree with its manifest, and is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from regard.errors import FileFormatError

__all__ = ["Checkpoint", "newest", "remove", "write"]

_WEIGHTS, _STATE, _TASK, _MANIFEST = "weights.safetensors", "state.pt", "task.json", "manifest.json"
_ABOUT = {"task", "settings", "step", "validation_loss", "assets", "tied"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk that agreed with its manifest when it was opened."""

    path: Path
    about: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Raises FileFormatError for a directory that is no checkpoint, or not a whole one."""
        try:
            manifest = json.loads((path / _MANIFEST).read_bytes())
            about = json.loads((path / _TASK).read_bytes())
            _check_names(manifest, about)
            for name, (size, digest) in manifest.items():
                _check(path / name, size, digest)
            return cls(path, about)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(
                f"{path} is no checkpoint: {_reason(error)}",
                "a directory that `regard train` wrote",
            ) from error

    @property
    def step(self) -> int:
        """How many steps led to it."""
        return int(self.about["step"])

    @property
    def loss(self) -> float | None:
        """The validation loss that was measured with these weights, if one was."""
        return self.about["validation_loss"]  # type: ignore[no-any-return]

    def assets(self) -> dict[str, str]:
        """The texts that the task saved."""
        return {name: (self.path / name).read_text("utf-8") for name in self.about["assets"]}

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's state dictionary."""
        held = load_file(self.path / _WEIGHTS)
        return held | {name: held[same] for name, same in self.about["tied"].items()}

    def state(self) -> dict[str, Any]:
        """The rest of the training's state."""
        state: dict[str, Any] = torch.load(self.path / _STATE, "cpu", weights_only=True)
        return state


def write(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    assets: Mapping[str, str],
    about: Mapping[str, Any],
) -> None:
    """Write a checkpoint; a crash at any time leaves all of it or nothing under this name."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    kept, tied = _untied(weights)
    save_file(kept, draft / _WEIGHTS)
    torch.save(dict(state), draft / _STATE)
    for name, text in assets.items():
        (draft / name).write_text(text, "utf-8")
    content = {**about, "assets": list(assets), "tied": tied}
    (draft / _TASK).write_text(json.dumps(content, indent=1), "utf-8")
    manifest = {file.name: (file.stat().st_size, _digest(file)) for file in sorted(draft.iterdir())}
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
    for file in draft.iterdir():
        _to_disk(file)
    remove(path)
    draft.rename(path)
    _to_disk(path.parent)


def remove(path: Path) -> None:
    """Remove a checkpoint, if it is there; at no time is there half of it under its name."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)


def newest(folder: Path) -> tuple[list[Checkpoint], list[FileFormatError]]:
    """The whole checkpoints of a run, newest first, and what is wrong with the others."""
    whole, broken = [], []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            whole.append(Checkpoint.open(path))
        except FileFormatError as error:
            broken.append(error)
    return whole, broken


def _untied(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by name, each once; and the other names of those that have several."""
    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in weights.items():
        same = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        if same == name or not tensor.numel():
            kept[name] = tensor.detach().cpu().contiguous()
        else:
            tied[name] = same
    return kept, tied


def _check_names(manifest: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    missing = _ABOUT - set(about)
    if missing:
        raise ValueError(f"{_TASK} lacks {', '.join(sorted(missing))}")
    for name in (*manifest, *about["assets"]):
        if Path(name).name != name:
            raise ValueError(f"{name} is no name of a file beside it")


def _check(file: Path, size: int, digest: str) -> None:
    found = file.stat().st_size
    if found != size:
        raise FileFormatError(
            f"{file} was cut short or changed: it has {found:,} of {size:,} bytes",
            remedy="use another checkpoint of the run",
        )
    if _digest(file) != digest:
        raise FileFormatError(
            f"{file} was changed: its checksum is not what it was when it was written",
            remedy="use another checkpoint of the run",
        )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
