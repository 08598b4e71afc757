"""The learning curve of a run, a line of JSON for each validation."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Timer

__all__ = ["Curve", "read"]


class Curve(Callback):
    """Writes the curve; a run that goes on from a checkpoint forgets what came after that.

    A point counts minutes by the clock, and minutes of processors, which say what a run cost on a
    machine that it shared.
    tell: also print each line to stderr.
    """

    def __init__(self, path: Path, timer: Timer, tell: bool) -> None:
        self._path, self._timer, self._tell = path, timer, tell
        self._sum, self._count = 0.0, 0
        self._begun = time.process_time()

    def state_dict(self) -> dict[str, Any]:
        """The mean of the losses since the last validation, and the processors' time."""
        return {"sum": self._sum, "count": self._count, "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with those."""
        self._sum, self._count = state["sum"], state["count"]
        self._begun = time.process_time() - state["seconds"]

    def _seconds(self) -> float:
        return time.process_time() - self._begun

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Drop lines of steps that are still to come."""
        if trainer.is_global_zero:
            kept = [point for point in read(self._path) if point["step"] <= trainer.global_step]
            self._path.write_text("".join(json.dumps(point) + "\n" for point in kept), "utf-8")

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        """Count a batch's loss."""
        self._sum += float(outputs["plain"]) * outputs["size"]
        self._count += outputs["size"]

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Write a line."""
        point = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "minutes": round(self._timer.time_elapsed("train") / 60, 3),
            "processor_minutes": round(self._seconds() / 60, 3),
            "training_loss": round(self._sum / max(self._count, 1), 5),
            "validation_loss": round(float(trainer.callback_metrics["validation_loss"]), 5),
        }
        self._sum, self._count = 0.0, 0
        if not trainer.is_global_zero:
            return
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(point) + "\n")
        if self._tell:
            print("  ".join(f"{name} {value}" for name, value in point.items()), file=sys.stderr)


def read(path: Path) -> list[dict[str, Any]]:
    """The points of a curve; a last line that was cut short is left out."""
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
