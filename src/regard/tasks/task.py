"""What a task is: its data, model, loss, metric, prediction and explanation, in one class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from regard.tasks.configuration import Range
from regard.viewer import Record

__all__ = ["Explanation", "Loss", "Task", "TrainingSettings", "UseSettings"]


@dataclass(frozen=True)
class TrainingSettings:
    """What every training can be told; a task's own class adds to it."""

    epochs: Annotated[int, "stop after so many passes over the data", Range(1)] = 30
    minutes: Annotated[float | None, "stop after so many minutes", Range(0)] = None
    patience: Annotated[
        int | None, "stop after so many epochs without a better validation loss", Range(1)
    ] = None
    rate: Annotated[float, "learning rate at its peak", Range(0)] = 1e-3
    warmup: Annotated[int, "steps until that peak, from which it falls as 1/√step", Range(0)] = 1000
    weight_decay: Annotated[float, "weight decay of AdamW", Range(0)] = 1e-4
    clip: Annotated[float, "longest gradient; longer ones are shortened to it", Range(0)] = 1.0
    average: Annotated[
        float, "decay of the weights' moving average, which is used; 0: none", Range(0, 1)
    ] = 0.998
    seed: Annotated[int, "seed of weights, shuffling and dropout", Range(0)] = 1
    save_every: Annotated[int, "steps between checkpoints", Range(1)] = 500
    precision: Annotated[
        Literal["32-true", "bf16-mixed", "16-mixed"], "precision of the arithmetic"
    ] = "32-true"
    deterministic: Annotated[bool, "refuse operations that differ from run to run"] = False
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "mps"], "where to train"] = "auto"
    devices: Annotated[int, "how many devices a machine", Range(1)] = 1
    nodes: Annotated[int, "how many machines", Range(1)] = 1


# What a run may be told anew when it goes on: how far, how often, and where; not what it is.
CHANGEABLE = frozenset(
    ("epochs", "minutes", "patience", "save_every", "accelerator", "devices", "nodes")
)


@dataclass(frozen=True)
class UseSettings:
    """What using a trained model can be told; a task's own class adds to it."""

    batch: Annotated[int, "inputs at a time", Range(1)] = 64


class Loss(NamedTuple):
    """How wrong a model is on a batch.

    training: the mean that is minimised. plain: the mean to report, without smoothing.
    size: of how many things (tokens, pictures) they are means.
    """

    training: Tensor
    plain: Tensor
    size: int


class Explanation(Protocol):
    """What a prediction paid attention to."""

    def lines(self) -> list[str]:
        """For the terminal."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""

    def record(self) -> Record:
        """For the page."""


S = TypeVar("S", bound=TrainingSettings)


class Task(ABC, Generic[S]):
    """One task. A subclass says all that is particular to it; the rest is the same for all.

    name: on the command line. settings_type: its settings, with their defaults.
    use_type: what evaluation and prediction can be told.
    splits: names of the data that `evaluate` knows, the default first.

    A task is made from its settings, and then has read its data; or from settings and the assets of
    a checkpoint, and then needs no data until it is evaluated.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[Any]]
    use_type: ClassVar[type[Any]] = UseSettings
    splits: ClassVar[tuple[str, ...]]

    def __init__(self, settings: S, assets: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.calibration: Mapping[str, Any] = {}
        self.load(assets)

    @abstractmethod
    def load(self, assets: Mapping[str, str] | None) -> None:
        """Take what was learned of the data from the assets, or learn it."""

    @abstractmethod
    def assets(self) -> dict[str, str]:
        """Texts that a model needs besides its weights, by the name of their file."""

    @abstractmethod
    def batches(self, validation: bool, rank: int = 0, world: int = 1) -> Iterable[Any]:
        """Data to train on or to validate with: one epoch at each iteration.

        It has a length, and `state_dict` and `load_state_dict` for its place within an epoch.
        rank, world: which share of it, where several processes train together.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """The model, untrained."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """How wrong the model is on a batch."""

    def calibrate(self, model: nn.Module) -> dict[str, Any]:
        """What is chosen on validation data once a model is trained, for JSON; later it is there as
        `calibration`.
        """
        return {}

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str, use: Any) -> dict[str, Any]:
        """The task's own figures on a split, by their names; for JSON."""

    @abstractmethod
    def predict(self, model: nn.Module, inputs: Sequence[str], use: Any) -> list[str]:
        """The model's answer to each input."""

    @abstractmethod
    def explain(self, model: nn.Module, given: str, target: str | None, use: Any) -> Explanation:
        """What the answer to an input attended to, or a target of the user's own in its place."""
