"""Recordings in files: a zip of .npy arrays and one JSON, without pickles; see docs/recordings.md.

What is read may come from anybody: only names that we make ourselves are looked up, sizes are
checked before memory is taken, and so are all numbers that a kernel would trust.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regard import api, readouts
from regard._arrays import as_numpy
from regard._files import replacing
from regard.errors import FileFormatError, OptionError, RegardError
from regard.masks import Normal
from regard.operator import AttentionWeights
from regard.recording.entry import Entry, Fixed
from regard.recording.heads import HeadTable, table
from regard.recording.record import Recording
from regard.recording.summary import NAMES, STATISTICS, Summary, requested, summarise
from regard.score import Additive

__all__ = ["as_path", "load", "save"]

_FORMAT, _VERSION = "regard recording", 1
_INDEX = "recording.json"
_MOST_INDEX = 64 << 20  # bytes of JSON
_FIELDS: dict[str, Any] = {
    "top_k": readouts.TopK,
    "top_queries": readouts.TopQueries,
    "pooled": readouts.Pooled,
    "threshold": readouts.Edges,
}
_OPERATOR = ("query", "key", "bias", "sinks", "vector", "intervals", "dense", "lse")

Array = npt.NDArray[Any]


def save(
    recording: Recording, path: str | Path, *, arrays: bool = False, heads: HeadTable | None = None
) -> None:
    """Write a recording to a file: its read-outs and scores, or with `arrays` its operators.

    heads: its table, if that is known already. The file appears when it is whole.

    Raises: FileFormatError when it cannot be written.
    """
    path = as_path(path)
    heads = table(recording) if heads is None else heads
    try:
        with replacing(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            calls = []
            for n, entry in enumerate(recording.entries):
                scores = [row.scores for row in heads if row.call == n]
                described, found = _described(entry, scores, arrays)
                calls.append(described)
                for name, array in found.items():
                    with file.open(_place(n, name), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.writestr(_INDEX, json.dumps(_header(recording, calls)))
    except OSError as error:
        raise FileFormatError(f"{path} cannot be written: {error.strerror or error}") from error


def load(path: str | Path, *, limit: int = 1 << 33) -> Recording:
    """A recording from a file that `Recording.save` wrote.

    Its records are summaries, or operators on NumPy arrays where it was saved with arrays=True.
    limit: the bytes that its arrays may take.

    Raises: FileFormatError for a file that is missing, damaged or no recording.
    """
    path = as_path(path)
    if not isinstance(limit, int) or limit < 0:
        raise OptionError(f"limit={limit!r}", "a number of bytes")
    try:
        with zipfile.ZipFile(path) as file:
            return _read(_Reader(file, limit))
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} does not exist") from error
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}") from error
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error.given}", error.wanted, error.remedy) from error
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise FileFormatError(f"{path} is no recording, or damaged: {reason}") from error


def as_path(given: Any) -> Path:
    """The path that was given. Raises OptionError for what is none."""
    try:
        path = Path(given)
    except TypeError as error:
        raise OptionError(f"a path of type {type(given).__name__}", "a text or a Path") from error
    if "\0" in str(path):
        raise OptionError(f"the path {str(path)!r}", "one without null characters")
    return path


# What the libraries that read may raise for bytes that are not what they should be.
_DAMAGED: tuple[type[Exception], ...] = (
    *(ValueError, KeyError, TypeError, EOFError, RuntimeError, NotImplementedError, IndexError),
    *(AttributeError, OverflowError, RecursionError, RegardError),
    *(zipfile.BadZipFile, zlib.error),
)


def _place(call: int, name: str) -> str:
    return f"arrays/{call}/{name}.npy"


def _header(recording: Recording, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "model": recording.model,
        "tokens": recording.tokens if recording.tokens is None else _texts(recording.tokens),
        "unseen": recording.unseen,
        "notes": recording.notes,
        "calls": calls,
    }


def _texts(tokens: Any) -> list[Any]:
    return [token if isinstance(token, str) else list(map(str, token)) for token in tokens]


def _described(
    entry: Entry, scores: list[dict[str, float]], arrays: bool
) -> tuple[dict[str, Any], dict[str, Array]]:
    """(what the JSON says of a record, its arrays by name)."""
    weights = entry.weights
    described: dict[str, Any] = {
        "name": entry.name,
        "kind": entry.kind,
        "heads": entry.heads,
        "steps": [[step.start, step.stop] for step in entry.steps],
        "shape": weights.shape,
        "scores": [{k: None if v != v else v for k, v in row.items()} for row in scores],
    }
    if arrays and isinstance(weights, AttentionWeights):
        found = _parts(weights)
        problem = weights._problem
        described["operator"] = {"scale": problem.scale, "softcap": problem.softcap}
        described["operator"] |= _described_score(problem.score)
        described["operator"]["arrays"] = list(found)
        return described, found
    summary = summarise(weights, requested(STATISTICS))
    found = {"visible": np.asarray(summary.visible)}
    described["read_outs"] = {}
    for name, (keywords, result) in summary.kept.items():
        described["read_outs"][name] = {key: _plain(value) for key, value in keywords.items()}
        fields: dict[str, Any] = {"": result}
        if isinstance(result, tuple):
            fields = dict(zip(_FIELDS[name]._fields, result, strict=True))
        found |= {f"{name}.{field}".rstrip("."): as_numpy(a) for field, a in fields.items()}
    return described, found


def _described_score(score: str | Additive) -> dict[str, Any]:
    if isinstance(score, str):
        return {"score": score}
    return {"score": score.activation, "negative_slope": score.negative_slope}


def _score(described: dict[str, Any], vector: Array | None) -> str | Additive:
    """As `_described_score` told it."""
    name = str(described.get("score", "dot"))
    if vector is None:
        return name
    return Additive(None, None, vector, name, float(described["negative_slope"]))


def _plain(value: Any) -> Any:
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    known = value is None or isinstance(value, (bool, int, float, str))
    return value if known else as_numpy(value).tolist()


def _parts(weights: AttentionWeights) -> dict[str, Array]:
    """The arrays of an operator."""
    problem = weights._host()
    seen = problem.visibility
    given = (problem.query, problem.key, problem.bias, problem.sinks, problem.vector)
    shown = (seen.intervals, seen.dense)
    found = dict(zip(_OPERATOR, (*given, *shown, weights._host_lse()), strict=True))
    return {name: as_numpy(array) for name, array in found.items() if array is not None}


class _Reader:
    """Arrays of a file, checked before memory is taken."""

    def __init__(self, file: zipfile.ZipFile, limit: int) -> None:
        self._file, self._limit, self._left = file, limit, limit

    def index(self) -> Any:
        """The JSON."""
        if self._file.getinfo(_INDEX).file_size > _MOST_INDEX:
            raise FileFormatError(f"{_INDEX} is larger than {_MOST_INDEX:,} bytes")
        found = json.loads(self._file.read(_INDEX))
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise FileFormatError("it is no recording")
        if found.get("version") != _VERSION:
            raise FileFormatError(
                f"a recording of version {found.get('version')}",
                f"{_VERSION}",
                "read it with the version of regard that wrote it",
            )
        return found

    def array(self, call: int, name: str, shape: tuple[int | None, ...]) -> Array:
        """An array of this shape (None: any size)."""
        info = self._file.getinfo(_place(call, name))
        with self._file.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0}[version]  # fmt: skip
            there, _, dtype = read(member)
            head = member.tell()
        size = int(np.prod(there, dtype=object)) * dtype.itemsize
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise FileFormatError(f"{info.filename} holds {dtype}", "numbers")
        if info.file_size != head + size:
            raise FileFormatError(f"{info.filename} does not have the size that it tells of")
        self._left -= size
        if self._left < 0:
            raise FileFormatError(
                f"its arrays take more than {self._limit:,} bytes", remedy="pass load(limit=…)"
            )
        if len(there) != len(shape) or any(w not in (None, s) for s, w in zip(there, shape)):  # noqa: B905
            raise FileFormatError(f"{info.filename} has shape {there}", f"{shape}")
        with self._file.open(info) as member:
            found: Array = np.lib.format.read_array(member, allow_pickle=False)
        return found.astype(dtype.newbyteorder("="), copy=False)


def _read(reader: _Reader) -> Recording:
    index = reader.index()
    recording = Recording(str(index["model"]), _tokens(index["tokens"]))
    recording.unseen = list(map(str, index["unseen"]))
    recording.notes = list(map(str, index["notes"]))
    for n, call in enumerate(index["calls"]):
        weights = _weights(reader, n, call)
        steps = [slice(int(start), int(stop)) for start, stop in call["steps"]]
        if any(not 0 <= s.start <= s.stop <= weights.shape[2] for s in steps):
            raise FileFormatError(f"call {n} has steps outside of its {weights.shape[2]} queries")
        heads = None if call["heads"] is None else tuple(map(int, call["heads"]))
        if heads is not None and len(heads) != weights.shape[1]:
            raise FileFormatError(f"call {n} names {len(heads)} heads of {weights.shape[1]}")
        source = Fixed(weights, steps)
        recording.entries.append(Entry(str(call["name"]), str(call["kind"]), source, heads))
    return recording


def _tokens(found: Any) -> Any:
    if found is None:
        return None
    return [t if isinstance(t, str) else [str(token) for token in t] for t in found]


def _weights(reader: _Reader, n: int, call: dict[str, Any]) -> AttentionWeights | Summary:
    batch, heads, queries, keys = shape = tuple(map(int, call["shape"]))
    if min(shape) < 0:
        raise FileFormatError(f"call {n} has shape {shape}")
    if "operator" in call:
        return _operator(reader, n, call["operator"], shape)
    kept = {}
    for name, keywords in call["read_outs"].items():
        given = {key: _meant(value) for key, value in keywords.items()}
        shapes = _shapes(name, given, (batch, heads), queries, keys)
        fields = _FIELDS[name]._fields if name in _FIELDS else ("",)
        if name == "pooled" and given.get("reduce") != "both":
            fields = ("",)
        found = [reader.array(n, f"{name}.{field}".rstrip("."), shapes) for field in fields]
        kept[name] = given, (_FIELDS[name](*found) if len(fields) > 1 else found[0])
    visible = reader.array(n, "visible", (None, None, None))
    np.broadcast_to(visible, (batch, heads, queries))
    _check_keys(kept, keys)
    scores = [{k: float("nan") if v is None else float(v) for k, v in row.items()}
              for row in call["scores"]]  # fmt: skip
    if len(scores) != heads:
        raise FileFormatError(f"call {n} has scores of {len(scores)} heads", f"of {heads}")
    return Summary(shape, kept, visible, scores)


def _meant(value: Any) -> Any:
    if isinstance(value, dict):
        return slice(*value["slice"])
    return tuple(value) if isinstance(value, list) else value


def _shapes(
    name: str, keywords: dict[str, Any], lead: tuple[int, int], queries: int, keys: int
) -> tuple[int | None, ...]:
    """The shape of a read-out's arrays."""
    if name not in NAMES:
        raise FileFormatError(f"a read-out {name!r}", f"one of {', '.join(NAMES)}")
    if name == "threshold":
        return (None,)
    if name == "received":
        return (lead[0], None, keys)  # heads, or groups of them
    if name == "top_queries":
        return (*lead, keys, None)
    if name == "similarity":
        return (*lead, None)
    if name == "pooled":
        return (*lead, None, None)
    grouped = name == "mass" and np.ndim(keywords["keys"]) > 0
    if grouped and np.asarray(keywords["keys"]).dtype != bool:
        return (*lead, queries, None)
    several = name in ("top_k", "distance_bins", "offsets")
    return (*lead, queries, None) if several else (*lead, queries)


def _check_keys(kept: dict[str, Any], keys: int) -> None:
    if "top_k" in kept:
        found = kept["top_k"][1].keys
        if found.size and not -1 <= found.min() <= found.max() < keys:
            raise FileFormatError(f"top_k names keys from {found.min()} to {found.max()}")


def _operator(
    reader: _Reader, n: int, described: dict[str, Any], shape: tuple[int, ...]
) -> AttentionWeights:
    batch, heads, queries, keys = shape
    shapes: dict[str, tuple[int | None, ...]] = {
        "query": (batch, heads, queries, None),
        "key": (batch, None, keys, None),
        "bias": (None, None, None, None),
        "sinks": (heads,),
        "vector": (None, None),
        "intervals": (None, None, None, None, 2),
        "dense": (None, None, None, None),
        "lse": (batch, heads, queries),
    }
    found = {name: reader.array(n, name, shapes[name]) for name in map(str, described["arrays"])}
    intervals, dense = found.get("intervals"), found.get("dense")
    _check_mask(intervals, dense, shape)
    made: AttentionWeights = api.weights(
        found["query"],
        found["key"],
        mask=None if intervals is None and dense is None else Normal(intervals, dense),
        bias=found.get("bias"),
        scale=float(described["scale"]),
        softcap=None if described["softcap"] is None else float(described["softcap"]),
        sinks=found.get("sinks"),
        score=_score(described, found.get("vector")),
    )
    if made.shape != shape:
        raise FileFormatError(f"call {n} has shape {made.shape}", f"{shape}")
    made._lse = np.ascontiguousarray(found["lse"], made._problem.accumulation_dtype)
    return made


def _check_mask(intervals: Array | None, dense: Array | None, shape: tuple[int, ...]) -> None:
    """That a mask stays inside of the keys: kernels read where it points."""
    if dense is not None:
        np.broadcast_to(dense, shape)
        if dense.dtype != bool:
            raise FileFormatError(f"a mask of {dense.dtype}", "booleans")
    if intervals is not None:
        np.broadcast_to(intervals[..., 0, 0], shape[:-1])
        ends = intervals.reshape(*intervals.shape[:-2], -1)
        inside = not ends.size or (ends.min() >= 0 and ends.max() <= shape[-1])
        if intervals.dtype != np.int32 or not inside or (np.diff(intervals) < 0).any():
            raise FileFormatError("a mask whose intervals lie outside of the keys")
