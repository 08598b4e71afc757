"""PNG files from pixels, and nothing but NumPy and zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """(rows, columns, 3) red, green, blue from 0 to 255 → the bytes of a PNG file.

    Source: PNG (Portable Network Graphics) Specification, Third Edition, W3C 2025.
    """
    rows, columns = pixels.shape[:2]
    # every line begins with its filter; 0 is none
    lines = np.zeros((rows, 1 + 3 * columns), np.uint8)
    lines[:, 1:] = pixels.reshape(rows, 3 * columns)
    size = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", size), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in parts)


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return b"".join((struct.pack(">I", len(content)), name, content, struct.pack(">I", check)))
