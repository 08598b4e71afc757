"""Attention over keys and values in pages: a cache that many sequences share, read in place.

A serving cache is one array of pages. Each sequence has a row of a table that says which page its
first keys are in, which its next, and so on; what lies where is nobody else's business, and nothing
is copied to attend.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import among, as_numpy, dtype_name
from regard.bias import Bias, arrays_in
from regard.errors import BackendError, DtypeError, MaskError, OptionError, ShapeError
from regard.frontends import front_end
from regard.masks import Extent, as_mask, edge_count
from regard.masks import lengths as lengths_mask
from regard.problem import LAYOUTS, Problem, make

__all__ = ["paged_attention"]

_IN_PLACE = ("regard.frontends.numpy", "regard.frontends.torch")


def paged_attention(
    query: Any,
    key_pages: Any,
    value_pages: Any,
    table: Any,
    lengths: Any,
    *,
    mask: Any = None,
    bias: Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    layout: str = "BHLD",
    backend: str | None = None,
    return_lse: bool = False,
) -> Any:
    """Exact attention over keys and values in pages, which are read where they lie.

    Key j of sequence b is row j % page_size of page table[b, j // page_size], for j < lengths[b].
    What lies behind a sequence's length is never read, nor is its entry of the table.

    Args:
        query: (B, H, Lq, D), usually the last Lq positions of each sequence.
        key_pages: (pages, K, page_size, D).
        value_pages: (pages, K, page_size, E).
        table: (B, most pages of a sequence) of integers.
        lengths: (B,) of integers: how many keys each sequence has.
        mask: what a query may see besides, of the Lk = (most pages) · page_size positions of a
            sequence: regard.causal(lengths - Lq) where several queries are the last ones.
        bias: one by distance, with its offset: regard.alibi(slopes, align=lengths - Lq).
        scale, softcap, sinks, backend: as in `regard.attention`.
        layout: "BHLD", or "BLHD" for queries (B, Lq, H, D) and pages (pages, page_size, K, D).
        return_lse: whether the log-sum-exp is wanted too, (B, H, Lq), as `regard.merge` takes it.

    A tile of the kernels' work lies in one page: pages of less than 64 keys make it slower.
    Inference only: no gradients, and arrays of NumPy or PyTorch in main memory.

    Returns:
        (B, H, Lq, E), or (B, Lq, H, E) in the layout BLHD; with return_lse a pair.

    Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
    PagedAttention" (2023).

    Raises: ShapeError, DtypeError, OptionError, BackendError.
    """
    if not (bias is None or isinstance(bias, Bias)):
        raise OptionError(
            f"a bias of type {type(bias).__name__} with keys in pages",
            "one by distance, such as regard.alibi(slopes, align=lengths - Lq)",
        )
    given = {"sinks": sinks, **arrays_in(bias)}
    front = front_end(query=query, key_pages=key_pages, value_pages=value_pages, **given)
    arrays = (query, key_pages, value_pages, *given.values())
    options = {"scale": scale, "softcap": softcap, "sinks": sinks, "layout": layout}

    def attend() -> tuple[Any, Any]:
        problem = _problem(front, arrays, table, lengths, mask, bias, **options)
        found: tuple[Any, Any] = front.attention_lse(problem, backend)
        return found

    output, lse = front.untraced(attend)()
    return (output, lse) if return_lse else output


@dataclass(frozen=True, eq=False)
class PagedProblem(Problem):
    """One whose keys and values are (pages, K, page_size, size)."""

    table: Any = None  # (B, n) int32

    @property
    def extent(self) -> Extent:
        """With as many keys as the table has room for."""
        batch, heads, queries, _ = self.query.shape
        return Extent((batch,), heads, queries, self.table.shape[1] * self.key.shape[-2])

    @property
    def pages(self) -> Any:
        """The table."""
        return self.table

    def without_pages(self) -> Problem:
        """The same with keys and values (B, K, Lk, size), which are copies."""
        names = [f.name for f in fields(Problem)]
        given = {name: getattr(self, name) for name in names}
        for name in ("key", "value"):
            pages = given[name]
            if pages is not None:
                found = as_numpy(pages)[self.table].swapaxes(1, 2)
                given[name] = found.reshape(*found.shape[:2], -1, found.shape[-1])
        return Problem(**given)


def _problem(
    front: Any,
    arrays: tuple[Any, ...],
    table: Any,
    lengths: Any,
    mask: Any,
    bias: Bias | None,
    **options: Any,
) -> Problem:
    """Checked as a call would be that has the first page as each sequence's keys."""
    _check(front, arrays, options["layout"])
    query, *both = arrays[:3]
    held = _lengths(lengths, query.shape[0])
    first = (front.broadcast(p[:1], (query.shape[0], *p.shape[1:])) for p in both)
    checked = make(query, *first, **options)
    if options["layout"] == "BLHD":
        both = [pages.swapaxes(1, 2) for pages in both]
    seen = lengths_mask(keys=held)
    mask = seen if mask is None else as_mask(mask) & seen
    if edge_count(mask) is not None:
        raise MaskError("a graph with keys in pages", "any other mask")
    given = {f.name: getattr(checked, f.name) for f in fields(Problem)}
    given |= {"key": both[0], "value": both[1], "mask": mask}
    problem = PagedProblem(**given, table=_table(table, held, both[0]))
    if bias is None:
        return problem
    sizes = problem.extent, problem.accumulation_dtype
    return problem.with_distances(bias.table(front, problem.query, *sizes))


def _check(front: Any, arrays: tuple[Any, ...], layout: str) -> None:
    query = arrays[0]
    if not among(layout, LAYOUTS):
        raise OptionError(f"layout={layout!r}", '"BHLD" or "BLHD"')
    device = str(getattr(query, "device", "cpu"))  # NumPy's arrays have one since version 2
    if front.__name__ not in _IN_PLACE or not device.startswith("cpu"):
        raise BackendError(
            f"keys in pages for {front.__name__.rpartition('.')[2]} arrays on {device}",
            "arrays of NumPy or PyTorch in main memory",
            "gather the pages and call regard.attention: key_pages[table]",
        )
    if front.wants_gradients(*arrays):
        raise BackendError(
            "keys in pages with arrays that require gradients",
            "inference, since keys in pages get no gradients",
            "attend under torch.no_grad(), or train on keys (B, K, Lk, D) with regard.attention",
        )
    shapes = [tuple(array.shape) for array in arrays[:3]]
    if any(len(shape) != 4 for shape in shapes) or shapes[1][:3] != shapes[2][:3]:
        raise ShapeError(
            f"query {shapes[0]}, key_pages {shapes[1]}, value_pages {shapes[2]}",
            "query (B, H, Lq, D), and keys and values (pages, K, page_size, size) of as many pages",
        )
    if 0 in shapes[1][:3]:
        raise ShapeError(f"key_pages {shapes[1]}", "at least one page, with heads and rows")


def _lengths(lengths: Any, batch: int) -> npt.NDArray[np.int64]:
    given = as_numpy(lengths)
    if given.dtype.kind not in "iu":
        raise DtypeError(f"lengths of type {dtype_name(given)}", "integers")
    if given.shape != (batch,) or (given < 0).any():
        raise ShapeError(
            f"lengths {given.shape} from {given.min(initial=0)} on",
            f"(B,) = ({batch},), 0 or more",
        )
    return given.astype(np.int64)


def _table(table: Any, lengths: npt.NDArray[np.int64], pages: Any) -> npt.NDArray[np.int32]:
    """The table as kernels read it, checked where they do."""
    given = as_numpy(table)
    count, _, size, _ = pages.shape
    if given.dtype.kind not in "iu":
        raise DtypeError(f"a table of type {dtype_name(given)}", "integers")
    if given.ndim != 2 or len(given) != len(lengths):
        raise ShapeError(f"a table {given.shape}", f"(B, pages) with B = {len(lengths)}")
    most = given.shape[1] * size
    if (lengths > most).any():
        raise ShapeError(
            f"lengths up to {lengths.max()}",
            f"at most {given.shape[1]} pages of {size} = {most}, as the table has",
            "give the table more columns",
        )
    used = np.arange(given.shape[1]) * size < lengths[:, None]
    bad = used & ((given < 0) | (given >= count))
    if bad.any():
        b, n = (int(i[0]) for i in np.nonzero(bad))
        raise OptionError(
            f"table[{b}, {n}] = {given[b, n]}, with lengths[{b}] = {lengths[b]}",
            f"a page from 0 to {count - 1} wherever a sequence has keys",
        )
    return np.ascontiguousarray(np.where(used, given, 0), np.int32)
