"""Training any task by Lightning's Trainer, so that it can be killed at any time and go on.

What a step draws at random depends on the seed and the step alone, not on what was drawn before:
so a run that goes on from a checkpoint ends with the same weights as one that was never stopped.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer, WeightAveraging
from torch import Tensor

from regard import __version__
from regard.errors import FileFormatError, OptionError
from regard.tasks import checkpoints
from regard.tasks.checkpoints import Checkpoint
from regard.tasks.configuration import as_dict, from_dict
from regard.tasks.curve import Curve
from regard.tasks.interruption import Interruption
from regard.tasks.memory import keep_freed_memory
from regard.tasks.task import CHANGEABLE, Task, TrainingSettings

__all__ = ["Learner", "continued", "train"]

_PREFIX = "model."  # of the model's names within the learner's


class Learner(LightningModule):
    """A task and its model, as Lightning trains it."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.task, self.settings = task, task.settings
        self.measured: float | None = None  # the validation loss of the weights as they are
        torch.manual_seed(self.settings.seed)
        self.model = task.model()

    def train_dataloader(self) -> Any:
        """One epoch at each iteration; each process has its share."""
        return self.task.batches(False, self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> Any:
        """The validation data: all of them for each process, so that nothing is left out."""
        return self.task.batches(True)

    def training_step(self, batch: Any, index: int) -> dict[str, Any]:
        """The loss of a batch."""
        place = self.trainer.global_step * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(self.settings.seed * 1_000_003 + place)
        loss = self.task.loss(self.model, batch)
        self.log("loss", loss.plain.detach(), prog_bar=True, batch_size=loss.size)
        return {"loss": loss.training, "plain": loss.plain.detach(), "size": loss.size}

    def validation_step(self, batch: Any, index: int) -> None:
        """Its mean over all validation data is logged as validation_loss."""
        loss = self.task.loss(self.model, batch)
        self.log("validation_loss", loss.plain, prog_bar=True, batch_size=loss.size)

    def configure_optimizers(self) -> Any:
        """AdamW; the rate rises for `warmup` steps and then falls as 1/√step."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            settings.rate,
            betas=(0.9, 0.98),
            eps=1e-9,
            weight_decay=settings.weight_decay,
            fused=settings.precision != "16-mixed",  # which scales gradients before it clips them
        )
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, _share(settings.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a checkpoint says about itself."""
        checkpoint["about"] = {
            "regard": __version__,
            "task": self.task.name,
            "settings": as_dict(self.settings),
            "step": self.trainer.global_step,
            "epoch": self.trainer.current_epoch,
            "validation_loss": self.measured,
        }


def train(
    task: Task[Any], folder: Path, start: Checkpoint | None = None, *, progress: bool = False
) -> Checkpoint:
    """Train a task's model, writing checkpoints and the curve into a folder; the best checkpoint.

    start: go on from this checkpoint. progress: show a bar.

    Raises: OptionError where the settings contradict what is there, such as a device.
    """
    settings: TrainingSettings = task.settings
    checkpoints_folder = folder / "checkpoints"
    checkpoints_folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    interruption = Interruption()
    trainer = _trainer(task, settings, folder, checkpoints_folder, progress, interruption)
    learner = Learner(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with interruption.heard():
            trainer.fit(learner, ckpt_path=None if start is None else start.path, weights_only=True)
    return best(folder)


def best(folder: Path) -> Checkpoint:
    """The checkpoint of a run with the lowest validation loss. Raises FileFormatError."""
    whole, broken = checkpoints.newest(folder / "checkpoints")
    if not whole:
        raise (
            broken[0]
            if broken
            else FileFormatError(
                f"{folder} holds no checkpoint", "a directory that `regard train` wrote"
            )
        )
    return _best(whole)


def _best(whole: Sequence[Checkpoint]) -> Checkpoint:
    return min(whole, key=lambda one: math.inf if one.loss is None else one.loss)


def continued(start: Checkpoint, given: Mapping[str, Any], task_type: type[Task[Any]]) -> Any:
    """The settings of a checkpoint, with changes to how far and where to train.

    Raises: OptionError for changes that would make it another training.
    """
    settings = from_dict(task_type.settings_type, start.about["settings"])
    for name, value in given.items():
        before = getattr(settings, name)
        if name not in CHANGEABLE and value != before:
            option = f"--{name.replace('_', '-')}"
            raise OptionError(
                f"{option} {value} differs from the {before} that the run began with",
                f"changes to {', '.join(sorted(CHANGEABLE))} only",
                f"leave out {option}, or train anew in another directory",
            )
    return from_dict(task_type.settings_type, as_dict(settings) | dict(given))


def _trainer(
    task: Task[Any],
    settings: TrainingSettings,
    folder: Path,
    kept: Path,
    progress: bool,
    interruption: Interruption,
) -> Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    limit = None if settings.minutes is None else timedelta(minutes=settings.minutes)
    timer = Timer(limit)
    curve = Curve(folder / "curve.jsonl", timer, not progress)
    callbacks: list[Callback] = [interruption, timer, curve]
    if settings.average:
        callbacks.append(_averaging(settings.average))
    if settings.patience is not None:
        callbacks.append(EarlyStopping("validation_loss", patience=settings.patience))
    callbacks.append(_Saving(kept, settings.save_every))  # the last: it saves what others did
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=settings.precision,
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip,
            deterministic=settings.deterministic,
            callbacks=callbacks,
            plugins=[_Storage(task)],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress and sys.stderr.isatty(),
        )
    except (RuntimeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"this machine cannot train so: {str(error).splitlines()[0]}") from error


def _averaging(decay: float) -> WeightAveraging:
    """A moving average of the weights, short at first, so that it forgets where they began."""

    def average(mean: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        return mean.lerp(new, 1 - min(decay, (1 + float(count)) / (10 + float(count))))

    return WeightAveraging(avg_fn=average)


def _share(warmup: int) -> Any:
    """Of the highest learning rate, at a step."""
    return lambda step: min((step + 1) / max(warmup, 1), math.sqrt(max(warmup, 1) / (step + 1)))


class _Saving(Callback):
    """Saves every so many steps, and after each validation; keeps the newest two and the best."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every = folder, every

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step % self._every == 0:
            self._save(trainer, module, None)

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self._save(trainer, module, float(trainer.callback_metrics["validation_loss"]))

    def _save(self, trainer: Trainer, module: Any, loss: float | None) -> None:
        module.measured = loss
        trainer.save_checkpoint(self._folder / f"step-{trainer.global_step:08}")
        if trainer.is_global_zero:
            whole, _ = checkpoints.newest(self._folder)
            kept = [*whole[:2], _best(whole)]
            for old in whole:
                if old not in kept:
                    checkpoints.remove(old.path)


class _Storage(CheckpointIO):
    """Lightning's checkpoints in our form: weights and state apart."""

    def __init__(self, task: Task[Any]) -> None:
        self._assets = task.assets()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        state = dict(checkpoint)
        weights = {
            name.removeprefix(_PREFIX): value for name, value in state.pop("state_dict").items()
        }
        checkpoints.write(Path(path), weights, state, self._assets, state.pop("about"))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        held = Checkpoint.open(Path(path))
        weights = {f"{_PREFIX}{name}": value for name, value in held.weights().items()}
        return held.state() | {"state_dict": weights}

    def remove_checkpoint(self, path: Any) -> None:
        checkpoints.remove(Path(path))
