"""The problem of a call on tensors: made at once where all sizes are known, else when it runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from regard import problem
from regard.errors import OptionError, ShapeError
from regard.frontends.tensorflow.calls import Unmade
from regard.frontends.tensorflow.held import Held, enter, is_tensor
from regard.masks import as_mask
from regard.problem import Problem
from regard.score import Additive, Bilinear, arrays_of, as_score

__all__ = ["make"]


def make(
    query: Any,
    key: Any,
    value: Any = None,
    *,
    bias: Any = None,
    sinks: Any = None,
    score: Any = "dot",
    **options: Any,
) -> Problem | Unmade:
    """A call, checked as far as its sizes are known. Raises: what regard.problem.make raises."""
    for name in ("scale", "softcap"):
        if is_tensor(options.get(name)):
            raise OptionError(
                f"{name} of type {type(options[name]).__name__}",
                "a plain number, since no gradient reaches it",
                "a learned factor belongs to the queries: multiply the queries by it",
            )
    arrays = {"query": query, "key": key, "value": value, "bias": bias, "sinks": sinks}
    held: dict[str, Any] = {n: None if a is None else enter(a) for n, a in arrays.items()}
    how = as_score(score)
    if how is not None:
        of_score: dict[str, Any] = {n: enter(a) for n, a in arrays_of(how).items()}
        how = dataclasses.replace(how, **of_score)
    if all(_known(array) for array in held.values()):
        return problem.make(**held, score=how or "dot", **options)
    return _unmade(held, how, **options)


def _known(array: Held | None) -> bool:
    return array is None or array.raw.shape.is_fully_defined()


def _unmade(
    held: dict[str, Held | None],
    how: Bilinear | Additive | None,
    *,
    mask: Any = None,
    scale: float | None = None,
    dropout_seed: Any = None,
    layout: str = "BHLD",
    **options: Any,
) -> Unmade:
    _check_unknown(held, layout)
    if layout == "BLHD":
        for name in ("query", "key", "value"):
            held[name] = _there(held[name]).swapaxes(-3, -2)
    score: str | Additive = "dot"
    vector = None
    if how is not None:
        held["query"], held["key"] = how.project(held["query"], held["key"])
        scale = 1.0 if scale is None else scale
    if isinstance(how, Additive):
        vector = how.vector
        score = dataclasses.replace(how, Wq=None, Wk=None, v=None)
    return Unmade(
        arrays={**held, "vector": vector},
        mask=None if mask is None else as_mask(mask),
        dropout_seed=dropout_seed,
        score=score,
        options={"scale": scale, **options},
        layout=layout,
    )


def _check_unknown(held: dict[str, Held | None], layout: str) -> None:
    """That enough is known for now: all ranks; of weights, everything."""
    shapes = {name: array.raw.shape for name, array in held.items() if array is not None}
    given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    remedy = "give tf.function an input_signature, or use tf.ensure_shape"
    if "value" not in shapes:
        wanted = "known sizes; attention() takes sizes that are not known yet"
        raise ShapeError(f"weights of {given}", wanted, remedy)
    ranks = {shapes[name].rank for name in ("query", "key", "value")}
    if None in {shape.rank for shape in shapes.values()} or len(ranks) > 1 or min(ranks) < 3:
        raise ShapeError(given, "(B, heads, length, size), of one known rank", remedy)
    if layout not in problem.LAYOUTS:
        raise OptionError(f"layout={layout!r}", '"BHLD" or "BLHD"')


def _there(array: Held | None) -> Held:
    assert array is not None
    return array
