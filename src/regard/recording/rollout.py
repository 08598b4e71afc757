"""Attention rollout: how much each input token takes part in a position of the last layer.

Source: Abnar & Zuidema, "Quantifying Attention Flow in Transformers" (2020). A layer is taken to
mix positions by M = ½ I + ½ mean_h P_h, half of it for the residual connection, and the layers
together by the product M_n … M_1. Of that product the rows asked for are computed, from the last
layer down, as vectors: r ← ½ r + ½ mean_h P_hᵀ r. No matrix is made; memory is linear in length.

In causal models the mask alone moves weight to the first tokens; compare with the rollout of a
model that attends evenly before reading much into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.errors import OptionError
from regard.operator import AttentionWeights
from regard.recording.entry import Entry
from regard.selection import indices

__all__ = ["chain", "chosen", "on_operator", "rollout", "unit_rows"]

Floats = npt.NDArray[np.float64]


def rollout(
    entries: Sequence[Entry],
    targets: Any = -1,
    *,
    layers: Sequence[int] | None = None,
    norms: Sequence[Any] | None = None,
) -> Floats:
    """The rows `targets` of the product of all layers: (B, C, L), each adding up to 1 at most.

    targets: positions (C,) in the last layer.
    layers: which records are the layers, in order; left out, all of them.
    norms: for each layer ‖v_j‖, (B, H, L) or (B, K, L): then P is replaced by p_ij ‖v_j‖, its rows
        divided by their sums, so that keys whose values are small count little.

    Raises: OptionError where the records are no chain of layers over the same positions.
    """
    operators = chain(entries, layers)
    rows = unit_rows(operators[-1], targets)
    weightings = [None] * len(operators) if norms is None else list(norms)
    if len(weightings) != len(operators):
        raise OptionError(f"norms of {len(weightings)} layers", f"of {len(operators)}")
    for weights, norm in zip(reversed(operators), reversed(weightings), strict=True):
        mixed = _transposed(weights, rows) if norm is None else _weighted(weights, rows, norm)
        rows = (rows + mixed) / 2
    return rows


def chain(entries: Sequence[Entry], layers: Sequence[int] | None) -> list[AttentionWeights]:
    """The operators of layers that follow one another. Raises OptionError."""
    found = chosen(entries, layers)
    shapes = {entry.weights.shape[-2:] for entry in found} | {found[0].weights.shape[-2:][::-1]}
    if len(shapes) > 1 or any(entry.kind == "cross" for entry in found):
        raise OptionError(
            f"layers of (Lq, Lk) = {', '.join(map(str, sorted(shapes)))}",
            "self attention over the same positions, in the order of the layers",
            "choose them with layers=[…]",
        )
    operators = [entry.weights for entry in found]
    missing = [w.name for w in operators if not isinstance(w, AttentionWeights)]
    if missing:
        raise OptionError(
            f"only read-outs of {missing[0]}", "operators", 'watch with mode="lazy", or save arrays'
        )
    return [weights for weights in operators if isinstance(weights, AttentionWeights)]


def chosen(entries: Sequence[Entry], layers: Sequence[int] | None) -> Sequence[Entry]:
    """The records that are the layers. Raises OptionError."""
    try:
        found = entries if layers is None else [entries[n] for n in layers]
    except (IndexError, TypeError) as error:
        raise OptionError(
            f"layers={layers!r}", f"a list of records from 0 to {len(entries) - 1}"
        ) from error
    if not found:
        raise OptionError("a recording without layers", "one at least")
    return found


def unit_rows(weights: AttentionWeights, targets: Any) -> Floats:
    """(B, C, L): for each target the vector that is 1 there."""
    batch, _, length, _ = weights.shape
    try:
        places = indices(targets, length, "target")
    except IndexError as error:
        raise OptionError(f"targets={targets!r}", f"positions from 0 to {length - 1}") from error
    return np.broadcast_to(np.eye(length)[places], (batch, len(places), length)).copy()


def on_operator(weights: AttentionWeights, array: npt.NDArray[Any]) -> Any:
    """An array of the operator's framework and element type."""
    query = weights._problem.query
    found = weights._front.from_numpy(array, query)
    return found.to(query.dtype) if hasattr(found, "to") else found.astype(query.dtype)


def _transposed(weights: AttentionWeights, rows: Floats) -> Floats:
    """mean_h P_hᵀ r of each row r: (B, C, L)."""
    heads = weights.shape[1]
    columns = np.broadcast_to(rows.swapaxes(1, 2)[:, None], (len(rows), heads, *rows.shape[:0:-1]))
    found = as_numpy(weights.mT @ on_operator(weights, columns)).astype(np.float64)
    return np.asarray(found.mean(axis=1).swapaxes(1, 2))


def _weighted(weights: AttentionWeights, rows: Floats, norm: Any) -> Floats:
    """The same with P diag(ν), its rows divided by their sums P ν: ν ∘ Pᵀ (r / P ν)."""
    heads = weights.shape[1]
    norm = as_numpy(norm).astype(np.float64)
    norm = np.repeat(norm, heads // norm.shape[1], axis=1)
    total = as_numpy(weights @ on_operator(weights, norm[..., None])).astype(np.float64)
    share = np.divide(
        rows.swapaxes(1, 2)[:, None],
        total,
        out=np.zeros((*total.shape[:-1], rows.shape[1])),
        where=total > 0,
    )
    found = as_numpy(weights.mT @ on_operator(weights, share)).astype(np.float64)
    return np.asarray((found * norm[..., None]).mean(axis=1).swapaxes(1, 2))
