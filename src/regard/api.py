"""attention, weights, scores and plan: the three steps of the mechanism by name.

Letters, options and errors are those that `attention` names.
"""

from __future__ import annotations

from typing import Any

from regard.bias import Bias, arrays_in
from regard.dispatch import Plan
from regard.errors import BackendError
from regard.frontends import front_end
from regard.frontends.repeated import repeat
from regard.operator import AttentionWeights
from regard.problem import Problem
from regard.score import arrays_of

__all__ = ["attention", "plan", "scores", "weights"]


def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    score: Any = "dot",
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    layout: str = "BHLD",
    precision: str | None = None,
    backend: str | None = None,
) -> Any:
    """Exact attention, softmax(scale · query keyᵀ + bias) value, in memory linear in length.

    B batch (any number of dimensions, none included), H query heads, K key heads (H divisible by
    K), Lq queries, Lk keys, D head size of queries and keys, E head size of values. A query that
    sees nothing has output 0.

    Args:
        query: (B, H, Lq, D) of float16, bfloat16, float32 or float64.
        key: (B, K, Lk, D) of the same type; of another size than D where the score allows it.
        value: (B, K, Lk, E) of the same type; H heads instead of K are fine too.
        mask: what a query may see: a boolean array (True = may attend) that broadcasts to (B,
            H, Lq, Lk), or a mask such as regard.causal(); default: everything.
        bias: added to the scores; broadcasts to (B, H, Lq, Lk); or one by distance, which is
            never a matrix: regard.alibi, regard.t5_bias or regard.relative_bias. −∞ hides; a
            finite score below −131,072 counts as that, so that a row which -1e9 or the lowest
            number hides as a whole is the mean of its values, as in PyTorch.
        scale: factor on the product of query and key; default 1/√D, and 1 for Bilinear and
            Additive.
        softcap: scores become softcap · tanh(scores / softcap), after scale, before bias and
            mask.
        score: how queries and keys are compared: "dot", regard.Bilinear(W) or
            regard.Additive(…).
        sinks: (H,) scores of a sink that joins the softmax's denominator and has no value.
        layout: "BHLD", or "BLHD" for arrays (B, L, heads, size); views, no copies.
        precision: "high" lets a processor with AMX split float32 into two bfloat16, which is
            faster: products are off by about 2⁻¹⁶ of their size (of elements below 2⁻¹¹⁰ by
            more, and those below 2⁻¹²⁶ count as 0), and weights by as much as their scores are.
            It holds for outputs, log-sum-exps and gradients; other types take no notice, nor do
            other processors. None: PyTorch's setting torch.set_float32_matmul_precision,
            "highest" unless changed ("medium" counts as "high"); for NumPy "highest".
        backend: None chooses; "native", "reference" or, for tensors, "torch" (PyTorch's own
            attention) by name never falls back in silence.
        dropout_p: probability with which a weight is dropped; the kept are divided by 1 − p.
        dropout_seed: makes dropout repeatable. Without it PyTorch draws one from its own generator;
            NumPy needs one.

    Returns:
        (B, H, Lq, E), or (B, Lq, H, E) in the layout BLHD; an array of the framework that the
        arguments came from, differentiable where it differentiates.

    Raises: ShapeError, DtypeError, MaskError, OptionError, ArrayTypeError and BackendError of
        `regard.errors`.

    Source: Vaswani et al., "Attention Is All You Need" (2017); computed tile by tile with an online
    softmax as in Dao et al., "FlashAttention" (2022).
    """
    dot = isinstance(score, str) and score == "dot"
    if dot and sinks is None and dropout_seed is None and not dropout_p:
        options = (scale, softcap, layout, precision, backend)
        output = repeat(query, key, value, mask, bias, options)
        if output is not None:
            return output
    front, problem = _prepared(
        {"query": query, "key": key, "value": value},
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        score=score,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        layout=layout,
        precision=precision,
    )
    return front.leave(front.attention(problem, backend))


def weights(
    query: Any,
    key: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    score: Any = "dot",
    layout: str = "BHLD",
    precision: str | None = None,
    backend: str | None = None,
) -> AttentionWeights:
    """The attention weights (B, H, Lq, Lk) as a lazy linear operator: `weights(q, k) @ v`.

    Args:
        query: (B, H, Lq, D).
        key: (B, K, Lk, D).

    The other options are those of `regard.attention`.

    Returns:
        AttentionWeights, which refers to query and key and copies neither.
    """
    front, problem = _prepared(
        {"query": query, "key": key},
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        score=score,
        layout=layout,
        precision=precision,
    )
    return AttentionWeights(problem, front, backend)


def scores(
    query: Any,
    key: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    score: Any = "dot",
    layout: str = "BHLD",
    precision: str | None = None,
    backend: str | None = None,
) -> Any:
    """The scores (B, H, Lq, Lk), dense: after scale, softcap and bias; what a mask hides is −∞.

    Arguments as in `weights`; sinks have no score. Memory is quadratic in length: this is the
    matrix. The type is float32, or float64 for float64.
    """
    operator = weights(
        query,
        key,
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        score=score,
        layout=layout,
        precision=precision,
        backend=backend,
    )
    return operator.scores()


def plan(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    score: Any = "dot",
    dropout_p: float = 0.0,
    dropout_seed: Any = None,
    layout: str = "BHLD",
    precision: str | None = None,
    backend: str | None = None,
) -> Plan:
    """What would compute `attention` with these arguments, and why; print it. Nothing is computed.

    Arguments, and errors for what does not fit together, as in `attention`.
    """
    front, problem = _prepared(
        {"query": query, "key": key, "value": value},
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        score=score,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        layout=layout,
        precision=precision,
    )
    made: Plan = front.plan(problem, backend)
    return made


def _prepared(
    arrays: dict[str, Any], *, bias: Any, sinks: Any, score: Any, **options: Any
) -> tuple[Any, Problem]:
    """The front end of a call and its problem; a bias by distance is made a table for its sizes."""
    front = front_end(**arrays, sinks=sinks, **arrays_in(bias), **arrays_of(score))
    options |= {"sinks": sinks, "score": score}
    if not isinstance(bias, Bias):
        return front, front.make(*arrays.values(), bias=bias, **options)
    if not hasattr(front, "take"):
        raise BackendError(
            f"a bias by distance on {front.__name__.rpartition('.')[2]} arrays",
            "arrays of NumPy, PyTorch or JAX",
            "pass the bias as an array (H, Lq, Lk)",
        )
    problem: Problem = front.make(*arrays.values(), **options)
    table = bias.table(front, problem.query, problem.extent, problem.accumulation_dtype)
    return front, problem.with_distances(table)
