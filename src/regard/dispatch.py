"""Which kernel computes a call, and why. What stands above asks here and names no kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import among
from regard.errors import BackendError, MaskError
from regard.kernels import native, reference
from regard.kernels.native import Prepared
from regard.problem import Problem

__all__ = [
    "Plan",
    "Prepared",
    "backward",
    "choose",
    "dense",
    "forward",
    "on_edges",
    "plan",
    "prepare",
    "read_out",
    "score_block",
]

BACKENDS = ("native", "reference")


@dataclass(frozen=True)
class Plan:
    """What would compute a call, and why; print it."""

    backend: str
    reason: str
    details: dict[str, str]

    def __str__(self) -> str:
        width = max([7, *(len(name) for name in self.details)])
        lines = [("backend", f"{self.backend}: {self.reason}"), *self.details.items()]
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def choose(backend: str | None) -> tuple[str, str]:
    """(name, reason) of the kernel for main memory; one asked for by name never falls back.

    Raises: BackendError.
    """
    if not among(backend, (None, *BACKENDS)):
        own = "torch, jax or tensorflow for arrays of that framework"
        raise BackendError(f"backend={backend!r}", f"None, {' or '.join(BACKENDS)}, or {own}")
    if backend == "reference":
        return "reference", "asked for by name"
    obstacle = native.available()
    if obstacle is None:
        return "native", "asked for by name" if backend else "the fastest for arrays in main memory"
    if backend == "native":
        raise BackendError(f"backend='native', but {obstacle}")
    return "reference", f"the native core cannot be used ({obstacle})"


def plan(problem: Problem, backend: str | None) -> Plan:
    """What `forward` would do with this problem."""
    name, reason = choose(backend)
    seen, extent = problem.visibility, problem.extent
    batch = len(extent.batch)
    letters = ("B, " if batch == 1 else "…, " if batch else "") + "H, Lq, Lk"
    details = {
        "problem": f"({letters}) = {extent.shape}, K = {problem.key_heads}, "
        f"D = {problem.head_size}, E = {problem.value_size}, {problem.dtype}, "
        f"sums in {problem.accumulation_dtype}",
        **({} if problem.vector is None else {"score": f"additive, {problem.activation}"}),
        "mask": _describe_mask(problem),
    }
    pairs = extent.flat_batch * extent.heads * extent.queries * extent.keys
    if seen.intervals is not None and seen.intervals.size:
        sizes = (seen.intervals[..., 1] - seen.intervals[..., 0]).astype(np.int64).sum(axis=-1)
        details["work"] = f"{sizes.mean() / max(1, extent.keys):.1%} of {pairs:,} pairs"
    elif seen.edges is not None:
        edges = len(seen.edges.by_query.others) * extent.flat_batch * extent.heads
        details["work"] = f"{edges / max(1, pairs):.2%} of {pairs:,} pairs"
    else:
        details["work"] = f"{pairs:,} pairs of query and key"
    if name == "native":
        details["runs on"] = f"{native.isa()}, {native.threads()} threads"
        details["memory"] = "linear in length" if seen.edges is None else "linear in edges"
        if problem.precision == "high" and problem.dtype == "float32":
            details["precision"] = _describe_precision(native.isa())
    else:
        details["runs on"] = "NumPy, float64"
        details["memory"] = "quadratic in length"
    return Plan(name, reason, details)


def forward(problem: Problem, output: Any, lse: Any, backend: str | None = None) -> None:
    """Write the output (B, H, Lq, E) and the log-sum-exp (B, H, Lq); either may be None."""
    if choose(backend)[0] == "native":
        native.forward(problem, output, lse)
    elif output is None:
        _write(lse, reference.lse(problem.without_pages()))
    else:
        y, total = reference.forward(problem.without_pages())
        _write(output, y)
        _write(lse, total)


def prepare(problem: Problem, output: Any, backend: str | None = None) -> Prepared | None:
    """`forward` and `backward` for all problems like this one; None where there is no such way.

    The problem has neither sinks nor dropout nor a graph.
    """
    return native.prepare(problem, output) if choose(backend)[0] == "native" else None


def backward(
    problem: Problem,
    output: Any,
    lse: Any,
    d_output: Any,
    d_lse: Any,
    backend: str | None = None,
    **wanted: Any,
) -> None:
    """Write the gradients that `wanted` names: d_query, d_key, d_value, d_bias, d_sinks.

    And d_vector, which is (B, H, D).

    output and lse are what `forward` wrote; output may be None if d_value alone is wanted, d_lse
    None is 0.
    """
    if choose(backend)[0] == "native":
        native.backward(problem, output, lse, d_output, d_lse, **wanted)
        return
    gradients = reference.backward(problem, d_output, d_lse)
    for name, array in wanted.items():
        _write(array, getattr(gradients, name.removeprefix("d_")))


def score_block(
    problem: Problem, batch: int, head: int, rows: slice, keys: slice, backend: str | None = None
) -> npt.NDArray[Any]:
    """(rows, keys) final scores of one head (B flattened), hidden ones −∞."""
    if choose(backend)[0] == "native":
        return native.scores(problem, batch, head, rows, keys)
    return reference.scores(problem)[batch, head, rows, keys]


def read_out(
    problem: Problem,
    output: Any,
    lse: Any,
    fields: dict[str, Any],
    backend: str | None = None,
    known: bool = True,
) -> None:
    """Fill the arrays that read-outs ask for; the output and lse too where an output is given.

    known: whether lse holds the log-sum-exp already, where no output is given.
    Only the native core reads out: for the reference there is `dense`.
    """
    assert choose(backend)[0] == "native"
    native.read_out(problem, output, lse, fields, known)


def on_edges(problem: Problem, backend: str | None = None) -> npt.NDArray[Any]:
    """(B, H, n) weights along the edges of a graph, in the caller's order. Raises: MaskError."""
    edges, extent = problem.visibility.edges, problem.extent
    if edges is None:
        raise MaskError(
            f"weights on edges, with mask {problem.mask!r}",
            "mask=regard.graph(edges)",
            "threshold(…) lists the large weights under any mask",
        )
    found = np.zeros((extent.flat_batch, extent.heads, edges.count), problem.accumulation_dtype)
    if choose(backend)[0] == "native":
        native.forward_on_edges(problem, None, None, found)
    else:
        queries, keys, numbers = edges.pairs
        found[..., numbers] = reference.weights(problem)[0][..., queries, keys]
    return found


def dense(problem: Problem) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scores and weights (B, H, Lq, Lk) in float64: memory quadratic in length."""
    return reference.scores(problem), reference.weights(problem)[0]


def _describe_mask(problem: Problem) -> str:
    if problem.mask is None:
        return "none"
    seen, shown = problem.visibility, repr(problem.mask)
    parts = []
    if seen.intervals is not None:
        parts.append(
            f"{seen.intervals.shape[-2]} interval(s) of keys a query; tiles outside skipped"
        )
    if seen.edges is not None:
        parts.append(f"{len(seen.edges.by_query.others)} edges; nothing else is computed")
    if seen.dense is not None:
        parts.append(f"a dense array {seen.dense.shape}")
    return f"{shown}: {' and '.join(parts) or 'hides nothing'}"


def _describe_precision(isa: str) -> str:
    if isa != "amx":
        return f"high is allowed, but changes nothing on {isa}"
    return "high: products of two parts in bfloat16, off by about 2⁻¹⁶ (where 96 rows share keys)"


def _write(target: Any, result: npt.NDArray[Any] | None) -> None:
    if target is None or result is None:
        return
    result = result.reshape(target.shape)
    if hasattr(target, "copy_"):
        target.copy_(target.new_tensor(result))
    else:
        np.copyto(target, result, casting="unsafe")
