"""Runs: a folder in which a training keeps its checkpoints, its curve, and what it was.

runs/en-de/
    training.json      the command, the settings, the machine, the time
    curve.jsonl        losses by epoch
    checkpoints/       the newest two, and the best
    calibration.json   what was chosen on validation data when training was over
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard import __version__
from regard._files import replacing
from regard.errors import FileFormatError, OptionError
from regard.tasks import checkpoints, curve, find
from regard.tasks.checkpoints import Checkpoint
from regard.tasks.configuration import as_dict, from_dict
from regard.tasks.task import Task
from regard.tasks.training import best, continued, train

__all__ = ["Trained", "load", "machine", "report", "start"]


@dataclass(frozen=True)
class Trained:
    """A task with a trained model. folder: of its run. notes: about checkpoints that are broken."""

    task: Task[Any]
    model: nn.Module
    checkpoint: Checkpoint
    folder: Path
    notes: tuple[str, ...] = ()


def start(
    task_type: type[Task[Any]],
    given: Mapping[str, Any],
    folder: Path,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    tell: Any = print,
) -> Trained:
    """Train a task in a folder, from the beginning or from where a run was stopped.

    given: settings that differ from the defaults; when resuming, from the run's.
    resume: go on from the last whole checkpoint, if there is a checkpoint.
    command: how it was called, for the report. tell: what to do with lines about what happens.

    Raises: OptionError, FileFormatError.
    """
    whole, broken = checkpoints.newest(folder / "checkpoints")
    _say(broken, tell)
    if not resume and (whole or broken):
        raise OptionError(
            f"{folder} holds a run already", "an empty folder", "name another, or add --resume"
        )
    if broken and not whole:
        raise broken[0]
    last = whole[0] if whole else None
    if last is None:
        task = task_type(from_dict(task_type.settings_type, given))
    else:
        _check_task(last, task_type.name)
        task = task_type(continued(last, given, task_type), last.assets())
        tell(f"Going on from step {last.step}, {last.path}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise FileFormatError(
            f"{folder} cannot be made: {reason}", "a folder for the run"
        ) from error
    about = {"command": list(command), "regard": __version__, "task": task_type.name}
    _write(folder / "training.json", {**about, "settings": as_dict(task.settings), **machine()})
    train(task, folder, last, progress=os.isatty(2))
    trained = load(folder, task_type)
    task.calibration = trained.task.calibration = task.calibrate(trained.model)
    _write(folder / "calibration.json", task.calibration)
    return trained


def load(path: Path, task_type: type[Task[Any]] | None = None) -> Trained:
    """The model of a run's best checkpoint, or of a checkpoint.

    task_type: the task that it must be of; left out, whichever of `TASKS` it is of.

    Raises: FileFormatError for what is no run or is broken, OptionError for another task.
    """
    notes: list[str] = []
    inside = (path / "checkpoints").is_dir()
    if inside:
        _say(checkpoints.newest(path / "checkpoints")[1], notes.append)
    chosen = best(path) if inside else _open(path)
    folder = path if inside else path.resolve().parent.parent
    task_type = task_type or find(chosen.about["task"])
    _check_task(chosen, task_type.name)
    task = task_type(from_dict(task_type.settings_type, chosen.about["settings"]), chosen.assets())
    calibration = folder / "calibration.json"
    if calibration.is_file():
        task.calibration = json.loads(calibration.read_text("utf-8"))
    model = task.model()
    model.load_state_dict(chosen.weights())
    return Trained(task, model.eval(), chosen, folder, tuple(notes))


def report(trained: Trained, split: str, use: Any, command: Sequence[str]) -> dict[str, Any]:
    """A split's figures with all that is needed to get them again; for JSON."""
    figures = trained.task.evaluate(trained.model, split, use)
    training = trained.folder / "training.json"
    return {
        "task": trained.task.name,
        "split": split,
        "figures": figures,
        "use": as_dict(use),
        "command": list(command),
        "checkpoint": {"step": trained.checkpoint.step, "loss": trained.checkpoint.loss},
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "training": json.loads(training.read_text("utf-8")) if training.is_file() else None,
        "curve": curve.read(trained.folder / "curve.jsonl"),
        "calibration": dict(trained.task.calibration),
        **machine(),
    }


def machine() -> dict[str, Any]:
    """What computes: processor, threads, versions."""
    return {
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _open(path: Path) -> Checkpoint:
    if not path.is_dir():
        raise FileFormatError(f"there is no directory {path}", "one that `regard train` wrote")
    return Checkpoint.open(path)


def _check_task(checkpoint: Checkpoint, name: str) -> None:
    if checkpoint.about["task"] != name:
        raise OptionError(f"{checkpoint.path} is of the task {checkpoint.about['task']}", name)


def _say(broken: Sequence[FileFormatError], tell: Any) -> None:
    for error in broken:
        tell(f"Passed over: {error}")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as stream:
        stream.write(json.dumps(content, indent=1, ensure_ascii=False).encode())
