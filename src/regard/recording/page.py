"""A recording as the viewer's record: what the page shows, in memory linear in length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regard._arrays import as_numpy
from regard.errors import OptionError
from regard.operator import AttentionWeights
from regard.readouts import Pooled, TopK
from regard.recording import heads, scores
from regard.recording.entry import fixed
from regard.recording.record import Recording
from regard.recording.rollout import rollout
from regard.recording.summary import Summary, Weights
from regard.recording.text import Passage, readable
from regard.viewer import Call, Record, Text

__all__ = ["record"]

_TOP = 8
_CELLS = 64
_DENSE = 24_000_000  # weights of all calls together up to which they are kept: 96 MB


def record(
    recording: Recording,
    passage: Passage | None = None,
    *,
    text: Text | None = None,
    table: heads.HeadTable | None = None,
    title: str | None = None,
    model: str | None = None,
    notes: Sequence[str] = (),
    batch: int = 0,
) -> Record:
    """What the page shows of a recording.

    Of every call and head the pooled maps, the 8 largest weights of each query, what each key
    received, the entropy, kind and scores; all weights only if they are few (24 million in all),
    and then the rollout too, where the recording is one pass through layers of self attention.

    Args:
        passage: the text that was read; without it, the recording's tokens, or numbers.
        text: what was read, if it was not a text: the patches of a picture.
        table: the heads' kinds and scores, if they are known already.
        title: the page's heading.
        model: the model's name, if not that of its class.
        notes: what a reader should know; what could not be seen is added.
        batch: which batch element to show.

    Raises: OptionError when the recording is empty or has no such batch element.
    """
    if not len(recording):
        raise OptionError("a recording without attention calls", "at least one call")
    if table is None and passage is not None:
        table = heads.table(recording, passage.ids, passage.special)
    elements = [_element(weights, batch) for weights in recording]
    rows = heads.table(recording) if table is None else table
    texts = _Texts(text or _first_text(recording, passage, batch))
    keep = sum(int(np.prod(element.shape)) for element in elements) <= _DENSE
    calls = [
        _call(element, [row for row in rows if row.call == n], texts, keep)
        for n, element in enumerate(elements)
    ]
    unseen = [*_chosen(recording), *recording.notes]
    if sketched := sum(map(_sketched, elements)):
        unseen.append(f"Of {sketched} calls the maps show only the largest weights of each query.")
    unseen += [f"Not seen: {name}" for name in recording.unseen]
    return Record(
        title=title or f"Attention in {model or recording.model}",
        model=model or recording.model,
        texts=texts.found,
        calls=calls,
        notes=[*notes, *unseen],
        glossary={**heads.SCORES, **heads.KINDS},
        kinds=list(heads.KINDS),
        rollouts=_rollouts(recording, texts, batch) if keep else [],
    )


def _chosen(recording: Recording) -> list[str]:
    """Which heads were kept, where not all were."""
    chosen = {", ".join(map(str, entry.heads)) for entry in recording.entries if entry.heads}
    if not chosen:
        return []
    which = f"heads {chosen.pop()}" if len(chosen) == 1 else "some heads only"
    return [f"Of each call, {which} were kept."]


def _element(weights: Weights, batch: int) -> Weights:
    """One batch element's operator (H, Lq, Lk), or its summary."""
    count = weights.shape[0] if len(weights.shape) > 3 else 1
    if not isinstance(batch, (int, np.integer)) or not 0 <= batch < count:
        raise OptionError(f"batch={batch!r}", f"a number from 0 to {count - 1}")
    if isinstance(weights, Summary):
        return weights.element(batch)
    return weights[batch] if len(weights.shape) > 3 else weights


def _call(weights: Weights, rows: Sequence[heads.HeadRow], texts: _Texts, keep: bool) -> Call:
    queries, keys = weights.shape[-2:]
    wanted: dict[str, Any] = {
        "top_k": {"k": min(_TOP, max(1, keys))},
        "received": {},
        "entropy": {},
    }
    if not _sketched(weights):
        wanted["pooled"] = {"shape": (_CELLS, _CELLS), "reduce": "both"}
    read = scores.sweep(weights, **wanted)
    pooled = read["pooled"] if "pooled" in read else _sketch(read["top_k"], queries, keys)
    first = max(keys - queries, 0) if texts.knows(keys) else 0
    return Call(
        name=rows[0].name,
        layer=rows[0].layer,
        kinds=[row.kind for row in rows],
        scores=_columns(rows),
        pooled_sum=pooled.sum,
        pooled_max=pooled.max,
        top_keys=read["top_k"].keys,
        top_weights=read["top_k"].weights,
        received=read["received"],
        entropy=read["entropy"],
        dense=as_numpy(weights.dense()) if keep and not isinstance(weights, Summary) else None,
        query_text=texts.of(first + queries),
        key_text=texts.of(keys),
        first_query=first,
        head_numbers=[row.head for row in rows],
    )


def _sketched(weights: Weights) -> bool:
    """Whether the map must be drawn from the largest weights: no map of several steps is kept."""
    return isinstance(weights, Summary) and "pooled" not in weights.kept


def _sketch(top: TopK, queries: int, keys: int) -> Pooled:
    """The map (H, rows, columns) of each query's largest weights."""
    heads = len(top.keys)
    rows, columns = min(_CELLS, queries), min(_CELLS, max(1, keys))
    head, query, _ = places = np.nonzero(top.keys >= 0)
    cells = head, query * rows // queries, top.keys[places] * columns // keys
    both = Pooled(*(np.zeros((heads, rows, columns), np.float32) for _ in range(2)))
    np.add.at(both.sum, cells, top.weights[places])
    np.maximum.at(both.max, cells, top.weights[places])
    return both


def _rollouts(recording: Recording, texts: _Texts, batch: int) -> list[Call]:
    """What each token read through all layers; [] where they are not all there, once each."""
    several = len(set(recording.names)) < len(recording)
    partial = recording.notes or recording.unseen or any(e.heads for e in recording.entries)
    length = recording[0].shape[-1]
    if several or partial or not length:
        return []
    if not all(isinstance(w, AttentionWeights) and len(w.shape) > 3 for w in recording):
        return []
    one = [
        replace(entry, source=fixed(entry.weights[batch : batch + 1]))
        for entry in recording.entries
    ]
    try:
        rows = rollout(one, range(length))
    except OptionError:  # encoder and decoder, or layers of several sizes
        return []
    text = texts.of(length)
    # rounded weights of a row may add up to a little more than 1
    shares = np.clip(rows, 0, 1).astype(np.float32)
    return [Call.from_weights(shares, name="rollout", layer=0, query_text=text, key_text=text)]


def _columns(rows: Sequence[heads.HeadRow]) -> Mapping[str, Any]:
    return {name: np.array([row.scores[name] for row in rows]) for name in heads.SCORES}


def _first_text(recording: Recording, passage: Passage | None, batch: int) -> Text | None:
    if passage is not None:
        flags = passage.special.tolist()
        return Text(list(passage.tokens), flags, passage.space_before.tolist())
    tokens = recording.tokens
    if tokens is None or not len(tokens):
        return None
    row = tokens if isinstance(tokens[0], str) else tokens[batch if len(tokens) > 1 else 0]
    plain, spaces = readable([str(token) for token in row])
    return Text(plain, Text.guess(plain).special, spaces)


class _Texts:
    """The texts that calls refer to, by length: the one that is known, and numbered positions."""

    def __init__(self, known: Text | None) -> None:
        self.found = [] if known is None else [known]
        self._known = None if known is None else len(known.tokens)

    def knows(self, length: int) -> bool:
        """Whether there are tokens for that many positions."""
        return self._known == length

    def of(self, length: int) -> int:
        """The number of the text with so many tokens."""
        for n, text in enumerate(self.found):
            if len(text.tokens) == length:
                return n
        numbers = [str(n) for n in range(length)]
        name = f"{length} positions"
        self.found.append(Text(numbers, [False] * length, [True] * length, name))
        return len(self.found) - 1
