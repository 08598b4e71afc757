"""Attention that a model computes with Regard itself, read as a Call."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch

from regard.frontends import torch as front
from regard.problem import Problem
from regard.recording.call import Call
from regard.recording.patch import Patch

__all__ = ["patches"]


def patches(observer: Callable[[], Any]) -> tuple[Patch, Patch]:
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
            observe = observer()
            if observe is None:
                return original(problem, backend)
            return observe(
                lambda _: _read(problem), None, lambda: original(problem, backend), inside=True
            )

        return attention

    return Patch(lambda: front, "attention", wrap), Patch(lambda: front, "signature", hide)


def _read(problem: Problem) -> Call:
    problem = problem.without_edges()
    if isinstance(problem.bias, np.ndarray):
        problem = problem.replace(bias=torch.from_numpy(problem.bias))
    return Call(
        problem.query,
        problem.key,
        terms=() if problem.bias is None else (problem.bias,),
        mask=problem.mask,
        scale=problem.scale,
        softcap=problem.softcap,
        sinks=problem.sinks,
    )
