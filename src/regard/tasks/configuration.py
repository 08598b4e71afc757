"""Configurations: frozen dataclasses that are printed, saved as JSON and made into options.

A field says all that there is to know about it:

    width: Annotated[int, "numbers that stand for a token", Range(1)] = 128

Its type may be int, float, bool, str, Path, one of these or None, or a `Literal` of words; a number
may have a `Range`.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from regard.errors import OptionError

C = TypeVar("C")

__all__ = ["Range", "Setting", "as_dict", "describe", "from_dict", "settings"]


@dataclass(frozen=True)
class Range:
    """least ≤ number < below."""

    least: float = -math.inf
    below: float = math.inf

    def __contains__(self, number: Any) -> bool:
        return bool(self.least <= number < self.below)  # NaN is in no range

    def __str__(self) -> str:
        if self.below == math.inf:
            return f"{self.least} or more"
        return f"at least {self.least} and less than {self.below}"


@dataclass(frozen=True)
class Setting:
    """One field: its name, type, default, what it means, its choices if they are few words, and
    the range of a number.
    """

    name: str
    type: type
    default: Any
    meaning: str
    optional: bool
    choices: tuple[str, ...] = ()
    range: Range | None = None

    @property
    def option(self) -> str:
        """As it is written on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: Any) -> Any:
        """The value in the field's own type. Raises OptionError."""
        if value is None and self.optional:
            return None
        if self.type is float and type(value) is int:
            value = float(value)
        if self.type is Path and isinstance(value, str):
            return Path(value)
        wanted = f"one of {', '.join(self.choices)}" if self.choices else self.type.__name__
        if not isinstance(value, self.type) or (self.type is int and isinstance(value, bool)):
            raise OptionError(f"{self.option} is {value!r}", wanted)
        if self.choices and value not in self.choices:
            raise OptionError(f"{self.option} is {value!r}", wanted)
        if self.range is not None and value not in self.range:
            raise OptionError(f"{self.option} is {value!r}", str(self.range))
        return value


def settings(configuration: type[Any]) -> Iterator[Setting]:
    """The fields of a configuration's class, in their order."""
    hints = get_type_hints(configuration, include_extras=True)
    for field in dataclasses.fields(configuration):
        kind, meaning, *more = get_args(hints[field.name])
        limits = more[0] if more else None
        optional = get_origin(kind) in (Union, types.UnionType)
        if optional:
            (kind,) = (part for part in get_args(kind) if part is not type(None))
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        base = str if choices else kind
        yield Setting(field.name, base, field.default, meaning, optional, choices, limits)


def as_dict(configuration: Any) -> dict[str, Any]:
    """For JSON: paths become texts."""
    values = dataclasses.asdict(configuration)
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def from_dict(configuration: type[C], values: Mapping[str, Any]) -> C:
    """A configuration from what `as_dict` gave, or from options; what is left out has its default.

    Raises: OptionError for a name that is no setting, and for a value of the wrong type.
    """
    known = {setting.name: setting for setting in settings(configuration)}
    for name in values.keys() - known.keys():
        raise OptionError(f"there is no setting {name!r}", f"one of {', '.join(known)}")
    return configuration(**{name: known[name].check(value) for name, value in values.items()})


def describe(configuration: Any) -> str:
    """One line a setting: its name, its value, what it means."""
    rows = [
        (s.name, str(getattr(configuration, s.name)), s.meaning)
        for s in settings(type(configuration))
    ]
    left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:{left}}  {value:{middle}}  {text}" for name, value, text in rows)
