"""Attention that a model computes with Regard itself, read as a Call.

Where a watcher keeps read-outs at once, they are made in the sweep that makes the output: its bits
are those of the plain call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from regard.errors import RegardError
from regard.frontends import torch as front
from regard.frontends.torch.own import spread
from regard.operator import AttentionWeights
from regard.problem import Problem
from regard.recording.call import Call, Found
from regard.recording.patch import Observer, Patch

__all__ = ["patches"]


def patches(observer: Callable[[], Observer | None]) -> tuple[Patch, Patch]:
    """The front end's attention, shown to the `observer()` of the calling thread, if any.

    And its `signature`: a call without one is not repeated from memory, but comes along here.
    """

    def hide(original: Any) -> Any:
        @wraps(original)
        def signature(*arrays: Any) -> Any:
            return original(*arrays) if observer() is None else None

        return signature

    def wrap(original: Any) -> Any:
        @wraps(original)
        def attention(problem: Problem, backend: str | None) -> Any:
            watching = observer()
            if watching is None:
                return original(problem, backend)
            wanted = watching.wanted(problem.extent.queries, problem.extent.keys)
            found: list[Found] = []

            def run() -> Any:
                both = _attend(problem, backend, wanted) if wanted else None
                if both is None:
                    return original(problem, backend)
                output, read = both
                found.append(Found(wanted, vars(read)))
                return output

            return watching.run(
                lambda output: _read(problem, output, *found), None, run, inside=True
            )

        return attention

    return Patch(lambda: front, "attention", wrap), Patch(lambda: front, "signature", hide)


def _attend(
    problem: Problem, backend: str | None, wanted: dict[str, dict[str, Any]]
) -> tuple[Any, SimpleNamespace] | None:
    """The output and read-outs in one sweep; None where the weights cannot be read so."""
    sparse = problem.visibility.edges is not None
    if problem.dropout_p or sparse or len(problem.extent.batch) != 1:
        return None
    value = problem.value if problem.layout == "BHLD" else problem.value.swapaxes(-3, -2)
    requests: dict[str, Any] = dict(wanted)
    try:
        return AttentionWeights(problem, front, backend).attend(value, **requests)
    except RegardError:  # the plain call runs, or tells of what is wrong with it
        return None


def _read(problem: Problem, output: Any, found: Found | None = None) -> Call:
    problem = problem.without_edges()
    if isinstance(problem.bias, np.ndarray):
        problem = problem.replace(bias=torch.from_numpy(problem.bias))
    if problem.by_distance:
        matrix = spread(problem.bias, problem.extent.keys)
        problem = problem.replace(bias=matrix, by_distance=False)
    return Call(
        problem.query,
        problem.key,
        terms=() if problem.bias is None else (problem.bias,),
        mask=problem.mask,
        scale=problem.scale,
        softcap=problem.softcap,
        sinks=problem.sinks,
        value=problem.value,
        output=output,
        swapped=problem.layout == "BLHD",
        found=found,
        score=problem.score,
    )
