"""Read-outs by name: what an operator tells about its weights, and how several are asked for."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any

from regard.errors import OptionError
from regard.readouts import KINDS

__all__ = ["DEFAULT_READ_OUTS", "ReadOuts", "namespace", "requested"]

# What `attend(v, read_outs="default")` gathers: enough to describe any head.
DEFAULT_READ_OUTS: dict[str, Any] = {
    "lse": True,
    "max_score": True,
    "max_weight": True,
    "entropy": True,
    "effective_keys": True,
    "top_k": 8,
    "distance": True,
    "distance_bins": True,
    "mass": 1,
    "received": True,
    "pooled": {"shape": (64, 64), "reduce": "both"},
}

_NAMES = ("lse", *KINDS)

_FIRST_ARGUMENT = {
    "top_k": "k",
    "threshold": "least",
    "mass": "keys",
    "distance": "offset",
    "distance_bins": "offset",
    "offsets": "offsets",
    "received": "reduce",
    "top_queries": "k",
    "pooled": "shape",
}


class ReadOuts:
    """The read-outs of an operator, each by its name, or several at once by `read`.

    i counts queries, j keys, p_ij are the weights, s_ij the scores. Arrays are of the framework of
    q and k, detached, float32 (float64 for float64), of leading shape (B, H) in every layout. Each
    is one sweep over all visible scores, `threshold` two; together they share it.
    """

    def read(self, *, read_outs: str | None = None, **wanted: Any) -> SimpleNamespace:
        """Several read-outs, in one sweep: an object with each as an attribute.

        wanted: a keyword is a read-out's name; True means its defaults, another value its first
            argument, a dict its keywords: `top_k=8, received=True, pooled={"reduce": "max"}`.
        read_outs: "default" for a preset that describes any head (DEFAULT_READ_OUTS).
        """
        return namespace(self._gather(requested(read_outs, wanted)))

    def max_score(self) -> Any:
        """max_j s_ij: (B, H, Lq); −∞ where nothing is seen."""
        return self._one("max_score")

    def max_weight(self) -> Any:
        """max_j p_ij: (B, H, Lq)."""
        return self._one("max_weight")

    def entropy(self) -> Any:
        """−Σ_j p_ij log p_ij in nats: (B, H, Lq); not renormalised where a sink takes weight."""
        return self._one("entropy")

    def effective_keys(self) -> Any:
        """1 / Σ_j p_ij²: (B, H, Lq); 0 where nothing is seen."""
        return self._one("effective_keys")

    def top_k(self, k: int = 8) -> Any:
        """Per query the k largest weights and their keys: a named tuple (weights, keys).

        Both (B, H, Lq, k), falling; ties go to the lower key; where fewer are seen, the key is −1
        and the weight 0.
        """
        return self._one("top_k", k=k)

    def threshold(self, least: float = 0.1) -> Any:
        """All pairs with p_ij ≥ least: named tuple (batch, head, query, key, weight) of vectors.

        At most 1 / least pairs a query. `batch` counts the flattened batch.
        """
        return self._one("threshold", least=least)

    def mass(self, keys: Any = 1) -> Any:
        """Σ_{j in keys} p_ij: (B, H, Lq).

        keys: a number of first keys; or booleans (Lk,) or (B, Lk); or as many integers, a group
            number for each key (negative: none), which gives (B, H, Lq, groups).
        """
        return self._one("mass", keys=keys)

    def distance(self, offset: int = 0) -> Any:
        """Σ_j p_ij |j − (i + offset)|, in positions: (B, H, Lq)."""
        return self._one("distance", offset=offset)

    def distance_bins(self, offset: int = 0) -> Any:
        """Weight by distance |j − (i + offset)|: (B, H, Lq, bins).

        Bin 0 is distance 0, bin n the distances 2ⁿ⁻¹ … 2ⁿ − 1.
        """
        return self._one("distance_bins", offset=offset)

    def offsets(self, offsets: Any = (-1, 0, 1)) -> Any:
        """p_{i, i + o} for each offset o (previous, self, next): (B, H, Lq, n); 0 outside."""
        return self._one("offsets", offsets=offsets)

    def received(self, reduce: str = "sum", queries: Any = None, groups: Any = None) -> Any:
        """What each key receives, Σ_i p_ij: (B, H, Lk).

        reduce: "sum", "mean" over the queries that can see the key, or "max".
        queries: count these only: a slice, indices, or booleans (Lq,).
        groups: a group number for each query (Lq,), negative for none: gives (B, H, groups, Lk).
        """
        return self._one("received", reduce=reduce, queries=queries, groups=groups)

    def top_queries(self, k: int = 8) -> Any:
        """Per key the k largest weights on it and their queries: a named tuple (weights, queries).

        Both (B, H, Lk, k), falling; ties go to the lower query; where fewer queries see the key,
        the query is −1 and the weight 0.
        """
        return self._one("top_queries", k=k)

    def pooled(self, shape: tuple[int, int] = (64, 64), reduce: str = "sum") -> Any:
        """The map summed into cells: (B, H, rows, columns). Row i falls in cell i · rows // Lq.

        reduce: "sum", "max", or "both" for a named tuple (sum, max).
        """
        return self._one("pooled", shape=shape, reduce=reduce)

    def similarity(self) -> Any:
        """How alike the maps of two heads are, their cosine: (B, H, H).

        Σ_ij p_ij p'_ij / √(Σ_ij p_ij² · Σ_ij p'_ij²), between 0 and 1; 0 for a head without
        weights. A sweep of its own over all heads together.
        """
        return self._one("similarity")

    def _one(self, name: str, **keywords: Any) -> Any:
        return self._gather({name: keywords})[name]

    def _gather(self, requests: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The read-outs requested: name and keywords."""
        raise NotImplementedError


def requested(read_outs: str | None, wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Names and keywords, from what `read` or `attend` was given. Raises OptionError."""
    if read_outs not in (None, "default"):
        raise OptionError(f"read_outs={read_outs!r}", 'None or "default"')
    requests = {**(DEFAULT_READ_OUTS if read_outs else {}), **wanted}
    return {name: _keywords(name, given) for name, given in requests.items() if given is not False}


def namespace(found: dict[str, Any]) -> SimpleNamespace:
    """Read-outs as attributes."""
    return SimpleNamespace(**found)


def _keywords(name: str, given: Any) -> dict[str, Any]:
    """A read-out's keywords from what it was requested with."""
    if name not in _NAMES:
        raise OptionError(f"{name}=…", f"the name of a read-out: {', '.join(_NAMES)}")
    if given is True:
        return {}
    if isinstance(given, dict):
        known = _arguments(name)
        unknown = [repr(key) for key in given if key not in known]
        if unknown:
            wanted = f"the keywords {', '.join(known)}" if known else f"{name}=True, no keywords"
            raise OptionError(f"{name} with {', '.join(unknown)}", wanted)
        return given
    if name not in _FIRST_ARGUMENT:
        raise OptionError(f"{name}={given!r}", f"{name}=True: it takes no argument")
    return {_FIRST_ARGUMENT[name]: given}


@functools.cache
def _arguments(name: str) -> tuple[str, ...]:
    """The names of a read-out's arguments."""
    method = getattr(ReadOuts, name, None)
    return () if method is None else tuple(inspect.signature(method).parameters)[1:]
