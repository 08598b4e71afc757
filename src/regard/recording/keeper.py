"""What of each call is kept: its operator, its read-outs, or nothing where memory is limited."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from regard.errors import OptionError
from regard.recording.call import Call, Parts, flow
from regard.recording.entry import Entry, kind_of
from regard.recording.growing import Growing
from regard.recording.record import Recording
from regard.recording.scores import codes, scores
from regard.recording.stepped import Stepped
from regard.recording.summary import Summary, requested, summarise

__all__ = ["Keeper", "Plan", "plan"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class Plan:
    """How to keep calls.

    lazy: as operators. wanted: the read-outs to keep otherwise. score_heads: whether to score heads
    at once. budget: the bytes that all records may hold; None: any number.
    """

    lazy: bool
    wanted: dict[str, dict[str, Any]]
    score_heads: bool
    budget: int | None
    values: bool


def plan(mode: str, read_outs: Any, budget: int | str | None, values: bool) -> Plan:
    """The plan for these arguments of `watch`. Raises OptionError."""
    if mode not in ("lazy", "stats"):
        raise OptionError(f"mode={mode!r}", '"lazy" or "stats"')
    return Plan(mode == "lazy", requested(read_outs), read_outs == "heads", _bytes(budget), values)


class Keeper:
    """Puts calls into a recording, as a plan says."""

    def __init__(self, recording: Recording, plan: Plan) -> None:
        self._recording, self._plan = recording, plan
        self._growing: dict[str, Growing | Stepped] = {}  # the last record of each module
        self._held: dict[int, dict[int, int]] = {}  # bytes by address, by owner
        self._reduced, self._lost = 0, 0
        ids = codes(recording.tokens)
        self._ids = None if ids is None else np.atleast_2d(ids)

    def at_once(self, name: str, queries: int, keys: int) -> dict[str, dict[str, Any]]:
        """The read-outs to make of a call of the module `name` while it is computed."""
        goes_on = name in self._growing and queries < keys
        return {} if self._plan.lazy or goes_on else self._plan.wanted

    def keep(self, call: Call, parts: Parts, name: str, chosen: list[int] | None) -> None:
        """Keep one call of the module `name`. Raises what reading its weights raises."""
        kind = kind_of(name)
        numbers = None if chosen is None else tuple(chosen)
        last = self._growing.get(name)
        if last is not None and last.grow(parts, self._fits):
            return
        if self._plan.lazy:
            record = Growing(parts, crosses=kind == "cross")
            through = flow(call, chosen) if self._plan.values else None
            entry = Entry(name, kind, record, numbers, through)
            if self._fits(entry.arrays, record):
                self._growing[name] = record
                self._recording.entries.append(entry)
                if through is not None:  # which a record that grows does not tell of
                    self._held[id(through)] = _memory([through.value, through.output])
                return
        stepped = Stepped(parts, self._summary(call, parts, kind), crosses=kind == "cross")
        if self._fits(stepped.arrays, stepped):
            self._reduced += self._plan.lazy
            self._growing[name] = stepped
            self._recording.entries.append(Entry(name, kind, stepped, numbers))
        else:
            self._lost += 1

    def finish(self) -> None:
        """No call will come any more."""
        for record in self._growing.values():
            record.close()
        self._growing = {}
        limit = f"The budget of {self._plan.budget:,} bytes" if self._plan.budget else ""
        if self._reduced:
            self._recording.notes.append(
                f"{limit} was reached: of {self._reduced} calls only the read-outs were kept."
            )
        if self._lost:
            self._recording.notes.append(
                f"{limit} was reached: of {self._lost} calls nothing was kept."
            )

    def _summary(self, call: Call, parts: Parts, kind: str) -> Summary:
        weights, wanted = parts.operator(), self._plan.wanted
        of_heads = None
        if self._plan.score_heads:
            of_heads = scores(weights, self._ids, None, crosses=kind == "cross")
        known = call.found.results if call.found and call.found.wanted is wanted else None
        return summarise(weights, wanted, of_heads, known)

    def _fits(self, arrays: list[Any], record: Growing | Stepped) -> bool:
        """Whether these may be all that a record holds, besides what the others do."""
        if self._plan.budget is None:
            return True
        all_held = {**self._held, id(record): _memory(arrays)}
        by_address: dict[int, int] = {}  # records share memory
        for held in all_held.values():
            by_address.update(held)
        fits = sum(by_address.values()) <= self._plan.budget
        if fits:
            self._held = all_held
        return fits


def _memory(arrays: Iterable[Any]) -> dict[int, int]:
    """The bytes at each address that arrays keep from being freed."""
    found = {}
    for array in arrays:
        if isinstance(array, Tensor):
            storage = array.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(array, np.ndarray):
            found[array.ctypes.data] = array.nbytes
    return found


def _bytes(budget: int | str | None) -> int | None:
    wrong = OptionError(f"budget={budget!r}", 'a number of bytes, or a text such as "256MB"')
    if budget is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B?\s*", str(budget).upper())
    if isinstance(budget, bool) or match is None or match[2] not in _UNITS:
        raise wrong
    found = int(float(match[1]) * _UNITS[match[2]])
    if found < 1:
        raise wrong
    return found
