"""What people build with attention: data, model, loss, metric, prediction, explanation, one by one.

Each task is a class in a file of its own; `find` loads it by its name. This needs the extra
"tasks": `pip install "regard[tasks]"`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from regard.errors import ModelError, OptionError

if TYPE_CHECKING:
    from regard.tasks.task import Task

__all__ = ["TASKS", "find"]

TASKS = {
    "translation": "Translate from one language to another.",
    "pronunciation": "Say how an English word is pronounced.",
}

_NEEDED = ("torch", "lightning", "tokenizers", "sacrebleu", "sacremoses", "safetensors", "pooch")


def find(name: str) -> type[Task[Any]]:
    """The class of a task. Raises OptionError; ModelError where the extra is not installed."""
    if name not in TASKS:
        raise OptionError(f"there is no task {name!r}", f"one of {', '.join(TASKS)}")
    missing = [module for module in _NEEDED if find_spec(module) is None]
    if missing:
        raise ModelError(
            f"not installed: {', '.join(missing)}", remedy='pip install "regard[tasks]"'
        )
    task: type[Task[Any]] = getattr(import_module(f"regard.tasks.{name}"), name.capitalize())
    return task
