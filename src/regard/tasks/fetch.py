"""Data files: from their published address with a checksum, or from the folder REGARD_DATA.

A file is named by its path below that folder. There it may lie as it was published, or gzipped with
".gz" added. Without REGARD_DATA it is fetched on first use and kept in the user's cache.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from regard._files import decoded, read_bytes
from regard.errors import FileFormatError

__all__ = ["Published", "read_lines"]


@dataclass(frozen=True)
class Published:
    """One file of a data set.

    path: where it lies below REGARD_DATA. address: where it is published.
    sha256: the checksum of the file as published.
    """

    path: str
    address: str
    sha256: str

    def read(self) -> bytes:
        """The file's bytes, checked, and unpacked if it is gzipped. Raises FileFormatError."""
        folder = os.environ.get("REGARD_DATA")
        content, where = self._local(Path(folder)) if folder else self._fetched()
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise FileFormatError(
                f"{where} is broken or another version: sha256 {found[:12]}…",
                f"the file with sha256 {self.sha256[:12]}…",
                f"delete it and fetch it again from {self.address}",
            )
        return _unpacked(content, where) if self.path.endswith(".gz") else content

    def lines(self) -> list[str]:
        """Its lines. Raises FileFormatError."""
        return _lines(self.read(), self.path)

    def _local(self, folder: Path) -> tuple[bytes, str]:
        path = folder / self.path
        packed = path.with_name(path.name + ".gz")
        if not path.exists() and packed.exists():
            return _unpacked(read_bytes(packed), str(packed)), str(packed)
        if not path.exists():
            raise FileFormatError(
                f"there is no {self.path} in REGARD_DATA={folder}",
                remedy=f"put it there from {self.address}, or unset REGARD_DATA to fetch it",
            )
        return read_bytes(path), str(path)

    def _fetched(self) -> tuple[bytes, str]:
        import pooch

        pooch.get_logger().setLevel("WARNING")
        cache = Path(pooch.os_cache("regard")) / self.path
        try:  # written under another name until it is whole and its checksum is right
            path = pooch.retrieve(self.address, f"sha256:{self.sha256}", cache.name, cache.parent)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise FileFormatError(
                f"{self.address} could not be fetched: {' '.join(str(error).split())[:300]}",
                remedy="try again, or put the file into a folder and set REGARD_DATA to that",
            ) from error
        return read_bytes(Path(path)), path


def read_lines(path: Path) -> list[str]:
    """The lines of a text file of the user's own, gzipped or not. Raises FileFormatError."""
    content = read_bytes(path)
    return _lines(_unpacked(content, str(path)) if path.suffix == ".gz" else content, str(path))


def _unpacked(content: bytes, name: str) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(
            f"{name} is no whole gzip file: {str(error).lower()}", remedy="fetch it again"
        ) from error


def _lines(content: bytes, name: str) -> list[str]:
    lines = decoded(content, name).split(
        "\n"
    )  # not splitlines: a parallel text may hold other line separators
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
