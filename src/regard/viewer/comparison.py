"""Two records of the same shapes side by side: the same model before and after, or on two texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regard.errors import ShapeError
from regard.viewer.record import Call, Floats, Record

CHANGE = "change"
MEANING = "Share of a query’s attention that went to other keys, on average: ½ Σ |p − p′|."
BOUND = " Of pooled maps, so at least that."


def pair(before: Record, after: Record) -> tuple[Record, Record]:
    """Both records as the page compares them: with the same texts to number from, and each head
    with its change as a score.

    Raises: ShapeError when they differ in calls, heads, queries or keys.
    """
    _check(before.calls, after.calls)
    shift = 0 if before.texts == after.texts else len(before.texts)
    texts = [*before.texts, *(after.texts if shift else ())]
    changes = [
        _change(first, second) for first, second in zip(before.calls, after.calls, strict=True)
    ]
    whole = all(call.dense is not None for call in (*before.calls, *after.calls))
    meaning = {CHANGE: MEANING if whole else MEANING + BOUND}
    return (
        replace(
            before,
            texts=texts,
            calls=_scored(before.calls, changes, 0),
            glossary={**before.glossary, **meaning},
        ),
        replace(
            after,
            texts=texts,
            calls=_scored(after.calls, changes, shift),
            rollouts=[_moved(call, shift) for call in after.rollouts],
        ),
    )


def _check(before: Sequence[Call], after: Sequence[Call]) -> None:
    if len(before) != len(after):
        raise ShapeError(
            f"records of {len(before)} and {len(after)} attention calls to compare",
            "as many in both",
            "watch the same layers both times",
        )
    for call, other in zip(before, after, strict=True):
        first, second = ((each.heads, each.queries, each.keys) for each in (call, other))
        if first != second:
            raise ShapeError(
                f"{call.name}: (heads, queries, keys) {first} and {second} to compare",
                "the same in both",
                "give texts of as many tokens each",
            )


def _scored(calls: Sequence[Call], changes: Sequence[Floats], shift: int) -> list[Call]:
    return [
        _moved(replace(call, scores={CHANGE: change, **call.scores}), shift)
        for call, change in zip(calls, changes, strict=True)
    ]


def _moved(call: Call, shift: int) -> Call:
    """The call, with texts that begin at another number."""
    return replace(call, query_text=call.query_text + shift, key_text=call.key_text + shift)


def _change(before: Call, after: Call) -> Floats:
    """(H,): half the sum of |p − p′| over keys, averaged over queries; of cells, where weights are
    not there.
    """
    if before.dense is not None and after.dense is not None:
        pairs = zip(before.dense, after.dense, strict=True)
        return np.array([np.abs(q - p).sum() / 2 / max(len(p), 1) for p, q in pairs])
    if before.pooled_sum.shape != after.pooled_sum.shape:
        raise ShapeError(
            f"{before.name}: pooled maps {before.pooled_sum.shape} and {after.pooled_sum.shape}",
            "the same cells in both",
        )
    moved = np.abs(after.pooled_sum - before.pooled_sum).sum((1, 2))
    return np.asarray(moved / 2 / max(before.queries, 1))
