"""Arrays in few bytes: logarithmic codes, deflated, in base64, a few kilobytes to a chunk.

A weight matters by its ratio to others, so codes are logarithmic: the relative error is the same
for all. The page decodes with the table that `table()` gives, from the numbers in `spec()`.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.viewer.record import Floats


@dataclass(frozen=True)
class LogCodes:
    """Codes for numbers from `floor` to `top`: 0 is exactly zero, 1 is more than zero but under the
    floor, and c ≥ 2 is floor · (top / floor)^((c − 2) / (last − 2)).
    """

    floor: float
    top: float
    last: int

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The narrowest type that holds `last`."""
        return np.uint8 if self.last <= 0xFF else np.uint16

    @property
    def error(self) -> float:
        """The largest relative error between floor and top."""
        return float(np.expm1(np.log(self.top / self.floor) / (self.last - 2) / 2))

    def encode(self, values: Floats) -> NDArray[np.unsignedinteger[Any]]:
        """values (any shape), from 0 up → codes of the same shape."""
        scale = (self.last - 2) / np.log(self.top / self.floor)
        positive = values > 0
        logs = np.log(np.where(positive, values, self.floor) / self.floor)
        codes = np.clip(np.rint(logs * scale) + 2, 2, self.last)
        codes = np.where(values < self.floor, 1, codes)
        return np.where(positive, codes, 0).astype(self.dtype)

    def table(self) -> NDArray[np.float64]:
        """(last + 1,): the number that each code stands for; codes 0 and 1 stand for 0."""
        exponent = (np.arange(2, self.last + 1) - 2) / (self.last - 2)
        return np.concatenate([[0.0, 0.0], self.floor * (self.top / self.floor) ** exponent])

    def spec(self) -> dict[str, Any]:
        """What the page needs to decode."""
        return {"floor": self.floor, "top": self.top, "last": self.last, "error": self.error}


class Chunks:
    """The binary parts of a page, each deflated by itself so that it is inflated when needed."""

    def __init__(self) -> None:
        self.base64: list[str] = []

    def add(self, array: NDArray[Any], codes: LogCodes | None = None) -> dict[str, Any]:
        """Packs an array (encoded, if `codes` says how); gives its entry for the header."""
        if codes is not None:
            array = codes.encode(array)
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        self.base64.append(base64.b64encode(zlib.compress(little.tobytes(), 6)).decode("ascii"))
        entry = {
            "chunk": len(self.base64) - 1,
            "dtype": array.dtype.name,
            "shape": list(array.shape),
        }
        return entry if codes is None else entry | {"codes": codes.spec()}

    @property
    def size(self) -> int:
        """Characters so far."""
        return sum(map(len, self.base64))
