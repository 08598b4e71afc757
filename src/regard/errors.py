"""What Regard raises when it is given something that it cannot use.

Every message says three things: what was given, what was wanted, and what to do about it. Each
class is also a ValueError or a TypeError, so code that catches those keeps working.
"""

from __future__ import annotations

__all__ = [
    "ArrayTypeError",
    "BackendError",
    "DeviceError",
    "DtypeError",
    "FileFormatError",
    "MaskError",
    "ModelError",
    "OptionError",
    "RegardError",
    "ShapeError",
    "StaleOperator",
]


class RegardError(Exception):
    """The root of all of them: `except regard.errors.RegardError` catches any."""

    def __init__(self, given: str, wanted: str = "", remedy: str = "") -> None:
        self.given, self.wanted, self.remedy = given, wanted, remedy
        parts = [given]
        if wanted:
            parts.append(f"Wanted: {wanted}.")
        if remedy:
            parts.append(f"To do: {remedy}.")
        super().__init__(" ".join(part if part.endswith(".") else f"{part}." for part in parts))

    def __reduce__(self) -> tuple[type[RegardError], tuple[str, str, str]]:
        return type(self), (self.given, self.wanted, self.remedy)


class ShapeError(RegardError, ValueError):
    """Sizes that do not fit together."""


class MaskError(RegardError, ValueError):
    """A mask that does not say clearly which query sees which key."""


class OptionError(RegardError, ValueError):
    """An option outside its range, or two that contradict each other."""


class DtypeError(RegardError, TypeError):
    """An element type that attention is not defined for, or types that differ."""


class ArrayTypeError(RegardError, TypeError):
    """An object that is no array of a supported framework, or arrays of two frameworks."""


class DeviceError(RegardError, ValueError):
    """Arrays on different devices, or on one that the backend asked for cannot reach."""


class BackendError(RegardError, ValueError):
    """The backend asked for by name cannot compute this call."""


class StaleOperator(RegardError, ValueError):
    """Queries or keys of an operator were changed in place after it was made."""


class ModelError(RegardError, ValueError):
    """A model that cannot be loaded, or that cannot be looked into."""


class FileFormatError(RegardError, ValueError):
    """A file that is missing, unreadable or not what its name says."""
