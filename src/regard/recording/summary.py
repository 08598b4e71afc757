"""A call of which only read-outs were kept: no queries, no keys, memory linear in length."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.errors import OptionError, ShapeError
from regard.masks import Extent, Visibility
from regard.operator import DEFAULT_READ_OUTS, AttentionWeights
from regard.reading import namespace
from regard.reading import requested as _keywords
from regard.readouts import KINDS

__all__ = ["NAMES", "STATISTICS", "Summary", "Weights", "requested", "summarise", "visible_keys"]

# What read_outs="default" keeps: the preset of `attend`, and the places next to each query.
STATISTICS: dict[str, Any] = {**DEFAULT_READ_OUTS, "offsets": (-1, 0, 1)}

NAMES = ("lse", *KINDS)

Keywords = dict[str, Any]


class Summary:
    """The read-outs of one call, asked for as an operator is: `call.entropy()`, `call.top_k(8)`.

    What was not kept raises OptionError. Largest weights are there for any smaller k as well, and
    of pooled maps kept with "both" the sum and the maximum.

    shape: (B, H, Lq, Lk). name: of the module that attended.
    visible: (B|1, H|1, Lq|1), how many keys each query could see.
    scores: each head's scores, where they were computed from the weights; see heads.py.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        kept: Mapping[str, tuple[Keywords, Any]],
        visible: npt.NDArray[np.int64],
        scores: list[dict[str, float]] | None = None,
        name: str | None = None,
    ) -> None:
        self.shape, self.name, self.visible, self.scores = shape, name, visible, scores
        self._kept = {n: (_complete(n, keywords), result) for n, (keywords, result) in kept.items()}

    @property
    def kept(self) -> dict[str, tuple[Keywords, Any]]:
        """Of each read-out its keywords and its result."""
        return dict(self._kept)

    @property
    def arrays(self) -> list[Any]:
        """All that is held."""
        results = (result for _, result in self._kept.values())
        return [a for r in results for a in (r if isinstance(r, tuple) else (r,))]

    def element(self, batch: int) -> Summary:
        """The summary (H, Lq, Lk) of one batch element."""
        kept = {
            name: (keywords, _each(result, lambda part: part[batch]))
            for name, (keywords, result) in self._kept.items()
            if name != "threshold"  # whose pairs are of the whole batch
        }
        visible = self.visible[batch if len(self.visible) > 1 else 0]
        return Summary(self.shape[1:], kept, visible, self.scores, self.name)

    def read(self, *, read_outs: str | None = None, **wanted: Any) -> SimpleNamespace:
        """Several read-outs, named as in `AttentionWeights.read`, of those that were kept."""
        requests = _keywords(read_outs, wanted)
        return namespace({name: self._one(name, **given) for name, given in requests.items()})

    def __getitem__(self, index: Any) -> Any:
        raise self._without("an index")

    def __matmul__(self, value: Any) -> Any:
        raise self._without("a product")

    def _one(self, name: str, *given: Any, **keywords: Any) -> Any:
        """One read-out, as it was kept. Raises OptionError for one that was not."""
        wanted = _complete(name, keywords, *given)
        if name not in self._kept:
            raise OptionError(
                f"{name}() of a call of which only read-outs were kept",
                f"one of {', '.join(self._kept)}",
                'watch with mode="lazy"; or name it in read_outs=, unless the record has steps',
            )
        keywords, result = self._kept[name]
        if name == "top_k" and wanted["k"] <= keywords["k"]:
            return _each(result, lambda part: part[..., : wanted["k"]])
        if name == "pooled" and keywords["reduce"] == "both" and wanted["reduce"] != "both":
            keywords, result = (
                {**keywords, "reduce": wanted["reduce"]},
                getattr(result, wanted["reduce"]),
            )
        if _plain(wanted) != _plain(keywords):
            asked = ", ".join(f"{key}={value!r}" for key, value in wanted.items())
            there = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
            raise OptionError(f"{name}({asked})", f"what was kept: {name}({there})")
        return result

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in NAMES:
            return lambda *given, **keywords: self._one(name, *given, **keywords)
        if name.startswith("_") or not hasattr(AttentionWeights, name):
            raise AttributeError(f"'Summary' object has no attribute {name!r}")
        raise self._without(name)

    def _without(self, name: str) -> OptionError:
        return OptionError(
            f"{name} of a call of which only read-outs were kept",
            f"one of {', '.join(self._kept)}",
            'watch with mode="lazy" for the operator of its weights',
        )

    def __repr__(self) -> str:
        return f"Summary (B, H, Lq, Lk) = {self.shape}: {', '.join(self._kept)}"


Weights = AttentionWeights | Summary


def _each(result: Any, change: Callable[[Any], Any]) -> Any:
    """The same result with each of its arrays changed."""
    if isinstance(result, tuple):
        return type(result)(*map(change, result))
    return change(result)


def requested(read_outs: str | Mapping[str, Any]) -> dict[str, Keywords]:
    """The keywords of each read-out that `read_outs` names. Raises OptionError."""
    if isinstance(read_outs, str):
        if read_outs not in ("default", "heads"):
            raise OptionError(f"read_outs={read_outs!r}", '"default", "heads" or a dict')
        read_outs = STATISTICS
    if not isinstance(read_outs, Mapping):
        raise OptionError(f"read_outs={read_outs!r}", '"default", "heads" or a dict')
    found = _keywords(None, dict(read_outs))
    for name, keywords in found.items():
        if name in KINDS:
            with contextlib.suppress(ShapeError):  # what depends on lengths is known with the call
                KINDS[name](Extent((1,), 1, 1, 1), "float32", **keywords)
    return found


def summarise(
    weights: Weights,
    wanted: dict[str, Keywords],
    scores: list[dict[str, float]] | None = None,
    found: Mapping[str, Any] | None = None,
) -> Summary:
    """The read-outs of an operator; of a summary, itself. found: where they are known already."""
    if isinstance(weights, Summary):
        return weights
    requests: dict[str, Any] = dict(wanted)
    found = vars(weights.read(**requests)) if found is None else found
    kept = {name: (keywords, found[name]) for name, keywords in wanted.items()}
    visible = visible_keys(weights._problem.visibility, weights.shape[-1])
    return Summary(weights.shape, kept, visible, scores, weights.name)


def visible_keys(seen: Visibility, keys: int) -> npt.NDArray[np.int64]:
    """(B|1, H|1, Lq|1): how many keys each query sees."""
    if seen.dense is not None:
        return np.asarray(seen.as_dense(keys).sum(axis=-1))
    if seen.intervals is None:
        return np.full((1, 1, 1), keys)
    return np.asarray((seen.intervals[..., 1] - seen.intervals[..., 0]).sum(axis=-1, dtype=int))


def _complete(name: str, keywords: Keywords, *given: Any) -> Keywords:
    """All keywords of a read-out, with its defaults."""
    bound = _signature(name).bind(None, *given, **keywords)
    bound.apply_defaults()
    return {key: value for key, value in bound.arguments.items() if key != "self"}


@functools.cache
def _signature(name: str) -> inspect.Signature:
    return inspect.signature(getattr(AttentionWeights, name))


def _plain(keywords: Keywords) -> dict[str, Any]:
    """Keywords that can be compared: arrays and sequences as lists."""
    return {
        key: value if value is None or isinstance(value, (str, int, float)) else _listed(value)
        for key, value in keywords.items()
    }


def _listed(value: Any) -> Any:
    return repr(value) if isinstance(value, slice) else as_numpy(value).tolist()
