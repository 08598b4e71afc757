"""Recording: what attended to what in a model, call by call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from regard._arrays import as_numpy
from regard.errors import FileFormatError, OptionError, RegardError
from regard.masks import Normal
from regard.operator import AttentionWeights
from regard.recording.entry import Entry
from regard.recording.summary import Summary, Weights

__all__ = ["Recording"]

_SAMPLED_QUERIES = 64
_PRINTED = (48, 16)  # calls at the beginning and at the end
_SHARPEST = 3
_SHOWN = 50_000_000  # weights up to which a notebook shows the page


class Recording(Sequence[Weights]):
    """What a model's attention did: a record for each call, in the order of the calls.

    Each is the operator of the call's weights, or a `Summary` where only read-outs were kept, with
    the dotted name of the module that called as `name`. Calls that go on with a cache of keys, as
    in generation, are one record that grows; `steps` tells them apart.

    tokens: what was given to `watch`: the texts of the positions.
    unseen: modules that look like attention and ran, but whose weights could not be seen:
        "name (Class)", with the reason after a colon where it is known.
    notes: what else a reader must know, such as a budget that was reached.
    model: the name of the model's class.
    entries: what is known of each record; see `Entry`.
    """

    def __init__(self, model: str, tokens: Any = None) -> None:
        self.model, self.tokens = model, tokens
        self.unseen: list[str] = []
        self.notes: list[str] = []
        self.entries: list[Entry] = []
        self._unmatched = ""  # which of the layers asked for did not attend

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Weights: ...
    @overload
    def __getitem__(self, index: slice) -> list[Weights]: ...
    def __getitem__(self, index: int | slice) -> Weights | list[Weights]:
        chosen = self.entries[index]
        return [entry.weights for entry in chosen] if isinstance(chosen, list) else chosen.weights

    def __iter__(self) -> Iterator[Weights]:
        return (entry.weights for entry in self.entries)

    @property
    def names(self) -> list[str]:
        """The module of each record."""
        return [entry.name for entry in self.entries]

    @property
    def kinds(self) -> list[str]:
        """ "self" or "cross" attention, for each record, by the name of its module."""
        return [entry.kind for entry in self.entries]

    @property
    def steps(self) -> list[list[slice]]:
        """The queries that each call brought, for each record: one slice, or one for each step."""
        return [entry.steps for entry in self.entries]

    def heads(self) -> Any:
        """A table of every head with its scores: previous-token, induction, sink, and so on.

        See `regard.recording.heads.table`.
        """
        from regard.recording.heads import table

        return table(self)

    def rollout(
        self, targets: Any = -1, *, layers: Sequence[int] | None = None, by_value: bool = False
    ) -> Any:
        """Attention rollout (Abnar & Zuidema, 2020): (B, C, L), the share of each input token.

        The rows `targets` of the product of ½ I + ½ mean_h P_h over all layers, computed as vectors
        in memory linear in length. layers: which records are the layers, in order; left out, all.
        by_value: weights count by the length of the values that they bring, p_ij ‖v_j‖ with rows
        that add up to 1; needs `watch(values=True)`.

        Raises: OptionError where the records are no chain of layers over the same positions.
        """
        from regard.recording.rollout import rollout

        norms = None
        if by_value:
            norms = self._value_norms(layers)
        return rollout(self.entries, targets, layers=layers, norms=norms)

    def _value_norms(self, layers: Sequence[int] | None) -> list[Any]:
        from regard.recording.rollout import chosen

        flows = [entry.flow for entry in chosen(self.entries, layers)]
        if any(flow is None for flow in flows):
            raise OptionError("by_value=True without values", remedy="watch with values=True")
        values = [as_numpy(flow.value).astype(np.float64) for flow in flows if flow is not None]
        return [np.sqrt((value * value).sum(axis=-1)) for value in values]

    def relevance(
        self, score: Any, targets: Any = -1, *, layers: Sequence[int] | None = None
    ) -> Any:
        """Gradient × attention (Chefer et al., 2021): (B, C, L), each input token's relevance.

        score: a number that the model computed while it was watched with values=True, with
        gradients. targets: the positions that it was computed from. layers: as in `rollout`.

        Raises: OptionError, ModelError where values or gradients are missing.
        """
        from regard.recording.relevance import relevance

        return relevance(self.entries, score, targets, layers=layers)

    def save(self, path: str | Path, *, arrays: bool = False) -> None:
        """Write it to a file, for `regard.load`: read-outs and scores, a zip of arrays and JSON.

        arrays: write queries, keys, masks and log-sum-exp instead, of which operators are made.
            Calls of which only read-outs were kept stay as they are.

        Raises: FileFormatError when the file cannot be written.
        """
        from regard.recording.files import save

        save(self, path, arrays=arrays)

    def html(
        self,
        path: str | Path,
        *,
        against: Recording | None = None,
        title: str | None = None,
        batch: int = 0,
    ) -> None:
        """Write a page to look around in: one self-contained HTML file.

        Tokens are named if `watch` was given them. batch: which batch element to show.
        against: an earlier recording of the same shapes: the page then shows it, this one, and what
        changed from it to this.

        Raises: OptionError when nothing was recorded or there is no such batch element, ShapeError
        when the recordings to compare differ in shape, FileFormatError when it cannot be written.
        """
        from regard.recording.files import as_path
        from regard.recording.page import record
        from regard.viewer import write_page

        if against is not None and not isinstance(against, Recording):
            raise OptionError(f"against={against!r}", "a recording", "regard.load(path) reads one")
        if title is not None and not isinstance(title, str):
            raise OptionError(f"title={title!r}", "a text")
        path = as_path(path)
        before = None if against is None else record(against, title=title, batch=batch)
        try:
            write_page(record(self, title=title, batch=batch), path, against=before)
        except OSError as error:
            raise FileFormatError(f"{path} cannot be written: {error.strerror or error}") from error

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
        entry = self.entries[index]
        try:
            sharp = self._sharpest(entry)
        except RegardError as error:
            sharp = str(error)
        steps = f" in {len(entry.steps)} steps" if len(entry.steps) > 1 else ""
        return f"{index:5}  {entry.name:{width}}  {entry.weights.shape}{steps}  {sharp}"

    def _sharpest(self, entry: Entry) -> str:
        call = entry.weights
        if isinstance(call, Summary) and "max_weight" not in call.kept:
            return f"kept: {', '.join(call.kept)}"
        few = call if isinstance(call, Summary) else _sampled(call)
        largest = as_numpy(few.max_weight())
        if not largest.size:
            return "empty"
        mean = largest.mean(axis=(0, 2))
        heads = entry.numbers
        order = np.argsort(-mean, kind="stable")[:_SHARPEST]
        return "sharpest: " + ", ".join(f"head {heads[h]} {mean[h]:.2f}" for h in order)

    def _warnings(self) -> Iterator[str]:
        if self._unmatched:
            yield f"{'NOT' if self else 'NOTHING WAS'} KEPT: {self._unmatched}"
        elif not self and not self.unseen and not self.notes:
            yield "NOTHING WAS SEEN: no attention ran while the model was watched."
        yield from self.notes
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
