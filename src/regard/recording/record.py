"""Recording: what attended to what in a model, call by call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from regard._arrays import as_numpy
from regard.errors import RegardError
from regard.masks import Normal
from regard.operator import AttentionWeights

__all__ = ["Recording"]

_SAMPLED_QUERIES = 64
_PRINTED = (48, 16)  # calls at the beginning and at the end
_SHARPEST = 3
_SHOWN = 50_000_000  # weights up to which a notebook shows the page


class Recording(Sequence[AttentionWeights]):
    """The operators of a model's attention calls, in the order of the calls.

    Each has the dotted name of the module that called as `name`.

    tokens: what was given to `watch`: the texts of the positions.
    unseen: modules that look like attention and ran, but whose weights could not be seen:
        "name (Class)", with the reason after a colon where it is known.
    model: the name of the model's class.
    kept_heads: the numbers of the heads that were kept, if not all.
    """

    def __init__(self, model: str, tokens: Any = None, kept_heads: list[int] | None = None) -> None:
        self.model, self.tokens, self.kept_heads = model, tokens, kept_heads
        self.unseen: list[str] = []
        self._unmatched = ""  # which of the layers asked for did not attend
        self._calls: list[AttentionWeights] = []

    def __len__(self) -> int:
        return len(self._calls)

    @overload
    def __getitem__(self, index: int) -> AttentionWeights: ...
    @overload
    def __getitem__(self, index: slice) -> list[AttentionWeights]: ...
    def __getitem__(self, index: int | slice) -> AttentionWeights | list[AttentionWeights]:
        return self._calls[index]

    def __iter__(self) -> Iterator[AttentionWeights]:
        return iter(self._calls)

    @property
    def names(self) -> list[str]:
        """The module of each call."""
        return [call.name or "" for call in self._calls]

    def heads(self) -> Any:
        """A table of every head with its scores: previous-token, induction, sink, and so on.

        See `regard.recording.heads.table`.
        """
        from regard.recording.heads import table

        return table(self)

    def html(self, path: str | Path, *, title: str | None = None, batch: int = 0) -> None:
        """Write a page to look around in: one self-contained HTML file.

        Tokens are named if `watch` was given them. batch: which batch element to show.

        Raises: OptionError when nothing was recorded or there is no such batch element.
        """
        from regard.recording.page import record
        from regard.viewer import write_page

        write_page(record(self, title=title, batch=batch), path)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """In a notebook, the page of the first batch element, unless that would take long."""
        from regard.recording.page import record
        from regard.viewer.notebook import bundle

        weights = sum(math.prod(call.shape) for call in self)
        if not 0 < weights <= _SHOWN:
            hint = "\n(html(path) writes a page of it.)" if self else ""
            return {"text/plain": f"{self}{hint}"}
        return bundle(record(self), str(self))

    def __repr__(self) -> str:
        missed = f", {len(self.unseen)} unseen" if self.unseen else ""
        return f"Recording of {self.model}: {len(self)} attention calls{missed}"

    def __str__(self) -> str:
        """One line a call, with the heads that attend most sharply; then what was not seen.

        A head's number is the mean over queries (64 at most, spread evenly) of its largest weight.
        """
        lines = [repr(self), *self._lines(), *self._warnings()]
        return "\n".join(lines)

    def _lines(self) -> Iterator[str]:
        first, last = _PRINTED
        shown = list(range(len(self)))
        width = max((len(name) for name in self.names), default=0)
        for index in shown if len(self) <= first + last else shown[:first]:
            yield self._line(index, width)
        if len(self) > first + last:
            yield f"      … {len(self) - first - last} more"
            for index in shown[-last:]:
                yield self._line(index, width)

    def _line(self, index: int, width: int) -> str:
        call = self._calls[index]
        try:
            sharp = self._sharpest(call)
        except RegardError as error:
            sharp = str(error)
        return f"{index:5}  {call.name or '':{width}}  {call.shape}  {sharp}"

    def _sharpest(self, call: AttentionWeights) -> str:
        largest = as_numpy(_sampled(call).max_weight())
        if not largest.size:
            return "empty"
        mean = largest.mean(axis=(0, 2))
        heads = self.kept_heads or range(len(mean))
        order = np.argsort(-mean, kind="stable")[:_SHARPEST]
        return "sharpest: " + ", ".join(f"head {heads[h]} {mean[h]:.2f}" for h in order)

    def _warnings(self) -> Iterator[str]:
        if self._unmatched:
            yield f"{'NOT' if self else 'NOTHING WAS'} KEPT: {self._unmatched}"
        elif not self and not self.unseen:
            yield "NOTHING WAS SEEN: no attention ran while the model was watched."
        if self.unseen:
            yield f"NOT SEEN ({len(self.unseen)}): these look like attention, and ran:"
            yield from (f"      {line}" for line in self.unseen)


def _sampled(call: AttentionWeights) -> AttentionWeights:
    """The operator for a few queries, spread evenly."""
    call._check_fresh()
    problem = call._problem
    queries = problem.extent.queries
    if queries <= _SAMPLED_QUERIES:
        return call
    rows = np.linspace(0, queries - 1, _SAMPLED_QUERIES).astype(np.int64)
    seen, bias = problem.visibility, problem.bias
    parts = [
        None if part is None else part if part.shape[2] == 1 else part[:, :, rows]
        for part in (seen.intervals, seen.dense)
    ]
    if bias is not None and bias.ndim > 1 and bias.shape[-2] > 1:
        bias = bias[..., rows, :]
    fewer = problem.replace(
        query=problem.query[..., rows, :],
        mask=None if seen.sees_everything else Normal(*parts),
        bias=bias,
    )
    return AttentionWeights(fewer, call._front, call._backend)
