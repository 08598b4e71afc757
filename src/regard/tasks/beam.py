"""Beam search: the sequences that a model finds most probable, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.errors import OptionError
from regard.tasks.vocabulary import BEGIN, END

__all__ = ["Hypothesis", "search"]

_NONE = float("-inf")
_CHUNK = 64  # numbers of which the largest is looked at first


@dataclass(frozen=True)
class Hypothesis:
    """A sequence without its begin and end.

    score: its log-probability, end included, divided by the length penalty; −inf for a sequence
    that was cut off at the longest length.
    """

    tokens: list[int]
    score: float


@torch.no_grad()
def search(
    model: Any,
    source: Tensor,
    lengths: Tensor,
    *,
    beam: int = 5,
    length_penalty: float = 1.0,
    longest: int = 200,
) -> list[list[Hypothesis]]:
    """The best sequences for each source, best first: `beam` of them at most, one at least.

    Of a sequence with n tokens, end included, the score is log p / ((5 + n) / 6)^length_penalty
    (Wu et al., 2016). A source is done when `beam` sequences are finished and no unfinished one has
    a better score so far than the worst of them. beam=1 is greedy search.

    Args:
        model: with encode, start and step, as `regard.layers.Transformer`.
        source, lengths: (B, S) tokens and (B,).
        longest: the most tokens of a sequence, end included.

    Raises: OptionError for a beam or a length that is not positive, or a negative penalty.
    """
    if beam < 1 or longest < 1 or length_penalty < 0:
        raise OptionError(
            f"beam={beam}, longest={longest}, length_penalty={length_penalty}",
            "a beam and a length of one at least, and a penalty of zero at least",
        )
    state = model.start(model.encode(source, lengths))
    frontier = _Frontier(len(source), beam, length_penalty, longest, source.device)
    if beam > 1:
        state.reorder(torch.arange(len(source), device=source.device).repeat_interleave(beam))
    while frontier.sources.numel():
        logits, state = model.step(frontier.tokens, state)
        order = frontier.advance(logits.float().log_softmax(-1))
        if order is not None:
            state.reorder(order)
    return frontier.found


class _Frontier:
    """B sources that are not done, each with K live sequences and the K best finished ones.

    sources: (B,) which they are of those given. found: what was found for each of those.
    """

    def __init__(
        self, count: int, beam: int, penalty: float, longest: int, device: torch.device
    ) -> None:
        self._beam, self._longest, self._penalty = beam, longest, penalty
        self._length = 0  # of the live sequences
        self.found: list[list[Hypothesis]] = [[] for _ in range(count)]
        self.sources = torch.arange(count, device=device)
        self._live = torch.full((count, beam, 1), BEGIN, device=device)
        self._scores = torch.full((count, beam), _NONE, device=device)
        self._scores[:, 0] = 0  # at first all K are the same
        self._done = torch.zeros((count, beam, longest + 1), dtype=torch.long, device=device)
        self._done_scores = torch.full((count, beam), _NONE, device=device)
        self._done_lengths = torch.zeros((count, beam), dtype=torch.long, device=device)

    @property
    def tokens(self) -> Tensor:
        """(B · K,) the last token of each live sequence."""
        return self._live[:, :, -1].reshape(-1)

    def advance(self, log_p: Tensor) -> Tensor | None:
        """Take each sequence's next token by log_p (B · K, V), which is written into.

        Gives (B' · K,), the rows that go on, for the model's state; None where all do, in place.
        """
        self._length += 1
        count, beam = self._scores.shape
        size = log_p.shape[-1]
        total = log_p.view(count, beam, size).add_(self._scores[:, :, None]).view(count, -1)
        # Twice K: at most K of them end, so K are left to go on. A greedy search that ends is over.
        scores, flat = _largest(total, 1 if beam == 1 else min(2 * beam, beam * size))
        origin, token = flat // size, flat % size
        longer = torch.cat([_rows(self._live, origin), token[:, :, None]], dim=2)
        ends = token == END
        first = torch.arange(scores.shape[1], device=flat.device) < beam
        ended = ends & first
        if ended.any():
            self._finish(longer, scores.masked_fill(~ended, _NONE))
        self._scores, best = scores.masked_fill(ends, _NONE).topk(beam, dim=1)
        self._live = _rows(longer, best)
        order = origin.gather(1, best) + beam * torch.arange(count, device=flat.device)[:, None]
        going = self._going()
        if going.all():
            return None if beam == 1 else order.reshape(-1)
        self._drop(~going)
        return order[going].reshape(-1)

    def _finish(self, sequences: Tensor, scores: Tensor) -> None:
        """Keep the K best of the finished ones and these; a score of −inf is none."""
        padding = self._longest + 1 - sequences.shape[2]
        sequences = torch.nn.functional.pad(sequences, (0, padding))
        scores = scores / self._penalised(self._length)
        lengths = torch.full_like(scores, self._length, dtype=torch.long)
        self._done_scores, best = torch.cat([self._done_scores, scores], 1).topk(self._beam, dim=1)
        self._done = _rows(torch.cat([self._done, sequences], 1), best)
        self._done_lengths = torch.cat([self._done_lengths, lengths], 1).gather(1, best)

    def _penalised(self, length: int) -> float:
        return float(((5 + length) / 6) ** self._penalty)

    def _going(self) -> Tensor:
        """(B,): which sources are not done."""
        if self._length == self._longest:
            return torch.zeros_like(self.sources, dtype=torch.bool)
        return self._scores[:, 0] / self._penalised(self._length) > self._done_scores[:, -1]

    def _drop(self, done: Tensor) -> None:
        """Hand over what was found for these sources, and forget them."""
        for row in done.nonzero()[:, 0].tolist():
            self.found[int(self.sources[row])] = self._hypotheses(row)
        for name in ("sources", "_live", "_scores", "_done", "_done_scores", "_done_lengths"):
            setattr(self, name, getattr(self, name)[~done])

    def _hypotheses(self, row: int) -> list[Hypothesis]:
        scores, lengths = self._done_scores[row].tolist(), self._done_lengths[row].tolist()
        found = [
            Hypothesis(self._done[row, k, 1:length].tolist(), score)
            for k, (score, length) in enumerate(zip(scores, lengths, strict=True))
            if score > _NONE
        ]
        return found or [Hypothesis(self._live[row, 0, 1:].tolist(), _NONE)]


def _largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers of each row, falling, and where they are: as `topk`, sooner.

    They lie in the k chunks whose largest numbers are largest, or behind the last whole chunk.
    """
    size = rows.shape[1]
    chunks = size // _CHUNK
    if chunks <= k:
        return rows.topk(k, dim=1)
    within = rows[:, : chunks * _CHUNK].view(len(rows), chunks, _CHUNK)
    chosen = within.amax(-1).topk(k, dim=1, sorted=False).indices
    places = (chosen[:, :, None] * _CHUNK + torch.arange(_CHUNK, device=rows.device)).flatten(1)
    behind = torch.arange(chunks * _CHUNK, size, device=rows.device).expand(len(rows), -1)
    places = torch.cat([places, behind], dim=1)
    values, at = rows.gather(1, places).topk(k, dim=1)
    return values, places.gather(1, at)


def _rows(of: Tensor, index: Tensor) -> Tensor:
    """(B, K', L): of (B, K, L) the rows index (B, K')."""
    return of.gather(1, index[:, :, None].expand(-1, -1, of.shape[2]))
