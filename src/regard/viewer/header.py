"""A record as the page holds it: a header in JSON, and its arrays in chunks, as fine as fits."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from regard.viewer.comparison import CHANGE
from regard.viewer.packing import Chunks, LogCodes
from regard.viewer.record import Call, Floats, Record, cell_edges, pool
from regard.viewer.text import Picture, Text

# What the codes of dense weights may be, finest first: the last code, and floor × number of keys.
# Levels are cheap beside the floor: what lies under the floor deflates to next to nothing.
DENSE_CODES = (
    (65535, 1e-3), (255, 0.02), (128, 0.25), (96, 0.6), (64, 1.0), (48, 1.4), (40, 1.8), (40, 2.2),
    (32, 2.6), (32, 3.2),
)  # fmt: skip
THUMBNAIL = 32
# Kinds of heads that look at what is the same elsewhere, which a page opens with, and kinds that
# look at places, whatever stands there.
_BY_WORD = {"duplicate token", "induction"}
_BY_PLACE = {
    *("previous token", "next token", "itself", "first-token sink", "special-token sink"),
    *("nearby tokens", "broad", "unknown"),
}
_WORD = re.compile(r"[^\W\d_]{4,}")
MARGINALS = 2_000_000  # numbers of all heads together, for received and for entropy each


def header(records: Sequence[Record], chunks: Chunks, budget: int) -> dict[str, Any]:
    """What the page reads first: texts, names, scores, and where in `chunks` the arrays are.

    records: one, or the two of `comparison.pair`, which share their texts.
    """
    first = records[0]
    everything = [call for record in records for call in (*record.calls, *record.rollouts)]
    cells = _marginal_cells(everything)
    entries = [_call_header(call, chunks, cells) for call in everything]
    room = (budget - chunks.size - 120_000) * 3 // 4
    tier = _dense_tier(everything, room)
    top_k = _top_k(everything, 8 * budget)
    for call, entry in zip(everything, entries, strict=True):
        if tier is not None and call.dense is not None:
            entry["arrays"]["dense"] = chunks.add(call.dense, _dense_codes(tier, call.keys))
        else:
            entry["arrays"] |= _summary_arrays(call, chunks, top_k)
    rest = iter(entries)
    titles = list(dict.fromkeys(record.title for record in records))
    names = titles if len(titles) == len(records) else ["before", "after"]
    runs = [
        {
            "name": name,
            "calls": list(itertools.islice(rest, len(record.calls))),
            "rollouts": list(itertools.islice(rest, len(record.rollouts))),
        }
        for name, record in zip(names, records, strict=True)
    ]
    return {
        "title": " → ".join(titles),
        "model": first.model,
        "notes": list(dict.fromkeys(note for record in records for note in record.notes)),
        "glossary": dict(first.glossary),
        "kinds": list(first.kinds),
        "texts": [_text_header(text) for text in first.texts],
        "runs": runs,
        "start": _start(records),
    }


def _text_header(text: Text) -> dict[str, Any]:
    return {
        "name": text.name,
        "tokens": list(text.tokens),
        "special": np.flatnonzero(np.asarray(text.special, bool)).tolist(),
        "glued": np.flatnonzero(~np.asarray(text.space_before, bool)).tolist(),
        "picture": None if text.picture is None else _picture_header(text.picture),
    }


def _picture_header(picture: Picture) -> dict[str, Any]:
    return {
        "uri": picture.uri(),
        "rows": picture.rows,
        "columns": picture.columns,
        "first": picture.first,
        "end": picture.end,
    }


def _call_header(call: Call, chunks: Chunks, cells: int) -> dict[str, Any]:
    grid = tuple(min(THUMBNAIL, n) for n in call.pooled_sum.shape[1:])
    thumbnail = pool(call.pooled_sum, (grid[0], grid[1]), np.add)
    return {
        "name": call.name,
        "layer": call.layer,
        "heads": call.heads,
        "queries": call.queries,
        "keys": call.keys,
        "query_text": call.query_text,
        "key_text": call.key_text,
        "first_query": call.first_query,
        "kinds": list(call.kinds),
        "numbers": [int(n) for n in call.head_numbers or range(call.heads)],
        "scores": {name: _numbers(score) for name, score in call.scores.items()},
        "arrays": {
            "thumbnail": chunks.add(thumbnail, LogCodes(1e-4, _top(thumbnail), 255)),
            "received": _add_marginal(call.received, cells, chunks),
            "entropy": _add_marginal(call.entropy, cells, chunks),
        },
    }


def _summary_arrays(call: Call, chunks: Chunks, top_k: int) -> dict[str, Any]:
    """Pooled maps and the top keys, for a call too large to be stored whole."""
    # per query, so that a cell says which share of its rows' attention it holds
    rows = np.diff(cell_edges(call.queries, call.pooled_sum.shape[1]))
    share = call.pooled_sum / np.maximum(rows, 1)[:, None]
    keys = np.where(call.top_keys[..., :top_k] < 0, call.keys, call.top_keys[..., :top_k])
    return {
        "pooled_share": chunks.add(share, LogCodes(1e-5, 1.0, 255)),
        "pooled_max": chunks.add(call.pooled_max, LogCodes(1e-5, 1.0, 255)),
        "top_keys": chunks.add(keys.astype(np.uint16 if call.keys < 0xFFFF else np.uint32)),
        "top_weights": chunks.add(call.top_weights[..., :top_k], LogCodes(1e-4, 1.0, 255)),
    }


def _top(values: Floats) -> float:
    return max(float(values.max(initial=0)), 1e-3)


def _marginal_cells(calls: Sequence[Call]) -> int:
    """Of how many cells a marginal may be, so that all together take a few megabytes."""
    longest = max(max(call.keys, call.queries) for call in calls)
    heads = sum(call.heads for call in calls)
    return longest if heads * longest <= MARGINALS else max(64, MARGINALS // heads)


def _add_marginal(values: Floats, cells: int, chunks: Chunks) -> dict[str, Any]:
    """(H, L) as it is, or as means over neighbours (H, cells)."""
    size = values.shape[1]
    if size > cells:
        counts = np.diff(cell_edges(size, cells))
        values = np.add.reduceat(values, cell_edges(size, cells)[:-1], axis=1) / counts
    last = 65535 if values.size < 200_000 else 255
    return chunks.add(values, LogCodes(1e-4, _top(values), last))


def _dense_codes(tier: int, keys: int) -> LogCodes:
    last, floor = DENSE_CODES[tier]
    return LogCodes(min(floor / max(keys, 8), 0.5), 1.0, last)


def _dense_tier(calls: Sequence[Call], room: int) -> int | None:
    """The finest codes with which all dense weights fit into `room` bytes: tried on a few heads."""
    maps = [
        call.dense[head] for call in calls if call.dense is not None for head in range(call.heads)
    ]
    total = sum(each.size for each in maps)
    # beyond this ratio no code would fit, and trying takes long
    if not total or total > 40 * room:
        return None
    picks = [maps[i] for i in np.unique(np.linspace(0, len(maps) - 1, 12).astype(int))]
    share = sum(each.size for each in picks) / total
    for tier in range(len(DENSE_CODES)):
        sample = Chunks()
        for each in picks:
            sample.add(each, _dense_codes(tier, each.shape[-1]))
        if sample.size * 3 / 4 <= 0.95 * room * share:
            return tier
    return None


def _top_k(calls: Sequence[Call], limit: int) -> int:
    """How many keys per query fit: three bytes each, before deflating."""
    rows = sum(call.heads * call.queries for call in calls)
    most = max(call.top_keys.shape[-1] for call in calls)
    return int(max(1, min(most, limit // max(3 * rows, 1))))


def _numbers(values: Floats) -> list[float | None]:
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]


def _start(records: Sequence[Record]) -> list[int]:
    """The head and the token to open with: a head whose keys depend on what the tokens are.

    Of two records, the head that changed most. A token of -1 leaves the choice to the page.
    """
    record = records[-1]
    merits = [_merit(call) if len(records) == 1 else call.scores[CHANGE] for call in record.calls]
    call = int(np.argmax([np.nan_to_num(merit).max(initial=-np.inf) for merit in merits]))
    head = int(np.nan_to_num(merits[call]).argmax())
    return [call, head, _telling(record, record.calls[call], head)]


def _merit(call: Call) -> Floats:
    """(H,): how much the query tells about the key, in nats; some kinds come before or behind."""
    shares = call.received / np.maximum(call.received.sum(-1, keepdims=True), 1e-30)
    spread = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)
    told = spread - (call.entropy.mean(-1) if call.queries else 0)
    first = [100 * (kind in _BY_WORD) - 100 * (kind in _BY_PLACE) for kind in call.kinds]
    return np.asarray(told + np.array(first))


def _telling(record: Record, call: Call, head: int) -> int:
    """The word that reads another one most clearly."""
    text, key_text = record.texts[call.query_text], record.texts[call.key_text]
    best, found = 0.0, -1
    for i, (key, weight) in enumerate(
        zip(call.top_keys[head, :, 0], call.top_weights[head, :, 0], strict=True)
        if call.top_keys.shape[-1]
        else ()
    ):
        token = call.first_query + i
        near = text is key_text and abs(int(key) - token) < 2
        if key < 0 or near or key_text.special[key]:
            continue
        if weight > best and not text.special[token] and _WORD.fullmatch(text.tokens[token]):
            best, found = float(weight), token
    return found
