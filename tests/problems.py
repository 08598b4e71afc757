"""Problems to try kernels on, and the rule that they are judged by."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from regard.kernels import reference
from regard.kernels.dropout import kept
from regard.problem import Problem, make

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def arrays(
    rng: np.random.Generator,
    shape: tuple[int, ...] = (1, 2, 2, 16, 16, 8, 8),
    dtype: str = "float32",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v for (B, H, K, Lq, Lk, D, E), with scores of ordinary size."""
    b, h, k, lq, lk, d, e = shape
    made = (rng.standard_normal(s) for s in ((b, h, lq, d), (b, k, lk, d), (b, k, lk, e)))
    kind = TYPES.get(dtype, np.float64)
    query, key, value = (array.astype(kind) for array in made)
    return query, key, value


def problem(rng: np.random.Generator, shape=(1, 2, 2, 16, 16, 8, 8), dtype="float32", **options):
    return make(*arrays(rng, shape, dtype), **options)


def plain_error(prob: Problem, truth: np.ndarray) -> float:
    """The error of plain PyTorch, softmax(q kᵀ · scale) v in the problem's own type."""
    return error(_plain(prob)[0].detach().double().numpy(), truth)


def plain_gradient_errors(
    prob: Problem, d_output: np.ndarray, expected: reference.Gradients
) -> dict[str, float]:
    """The error of each gradient of plain PyTorch in the problem's own type."""
    output, leaves = _plain(prob)
    output.backward(_tensor(d_output))
    return {
        name: error(leaf.grad.double().numpy(), getattr(expected, name))
        for name, leaf in leaves.items()
    }


def _plain(prob: Problem) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    names = ("query", "key", "value", "bias", "sinks", "vector")
    given = ((name, getattr(prob, name)) for name in names)
    leaves = {name: _tensor(a).requires_grad_() for name, a in given if a is not None}
    q, k, v = (leaves[name] for name in names[:3])
    heads = prob.extent.heads
    k, v = (x.repeat_interleave(heads // x.shape[-3], dim=-3) for x in (k, v))
    s = prob.scale * _compared(prob, q, k, leaves.get("vector"))
    if prob.softcap:
        s = prob.softcap * torch.tanh(s / prob.softcap)
    if prob.bias is not None:
        s = s + _bias(prob, leaves["bias"]).to(s.dtype)
    seen = torch.from_numpy(np.array(prob.visibility.as_dense(prob.extent.keys)))
    s = s.masked_fill(~seen, torch.finfo(s.dtype).min / 2)
    if prob.sinks is not None:
        sink = leaves["sinks"].to(s.dtype)[:, None, None].expand(*s.shape[:-1], 1)
        s = torch.cat([s, sink], dim=-1)
    p = s.softmax(dim=-1)[..., : prob.extent.keys] * seen
    if prob.dropout_p:
        keep = kept(prob.dropout_seed, prob.dropout_p, *p.shape)
        p = p * torch.from_numpy(keep) / (1 - prob.dropout_p)
    return p @ v, leaves


def _bias(prob: Problem, bias: torch.Tensor) -> torch.Tensor:
    """That of a graph's edges, or of distances, as a dense array."""
    if prob.by_distance:
        queries, keys = (torch.arange(n) for n in prob.extent.shape[-2:])
        return bias[..., 0, keys - queries[:, None] + len(queries) - 1]
    edges = prob.visibility.edges
    if edges is None:
        return bias
    queries, keys, numbers = map(torch.from_numpy, edges.pairs)
    each = bias.expand(prob.bias_extent.shape)[..., 0, :]
    dense = torch.zeros(prob.extent.shape, dtype=bias.dtype)
    dense[..., queries, keys] = each[..., numbers.long()]
    return dense


def _compared(prob: Problem, q: torch.Tensor, k: torch.Tensor, vector: Any) -> torch.Tensor:
    if vector is None:
        return q @ k.mT
    x = q[..., :, None, :] + k[..., None, :, :]
    if prob.activation == "tanh":
        f = torch.tanh(x)
    else:
        f = torch.nn.functional.leaky_relu(x, prob.negative_slope)
    return (f * vector[:, None, None]).sum(dim=-1)


def error(actual: Any, truth: np.ndarray) -> float:
    """The largest absolute error; NaN where only one of both is NaN counts as infinite."""
    actual = np.asarray(actual, np.float64)
    if not np.array_equal(np.isnan(actual), np.isnan(truth)):
        return np.inf
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual - truth)
    difference[(actual == truth) | np.isnan(truth)] = 0
    return float(difference.max(initial=0))


def allowed(plain: float, truth: np.ndarray, dtype: str, factor: float = 2) -> float:
    """Flash-attention's rule: `factor` times plain PyTorch's error in its type, and a little."""
    finite = np.abs(truth[np.isfinite(truth)])
    little = 1e-12 if dtype == "float64" else 1e-5
    return factor * plain + little * max(1.0, float(finite.max(initial=0)))


def truth(prob: Problem) -> tuple[np.ndarray, np.ndarray]:
    return reference.forward(prob)


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))
