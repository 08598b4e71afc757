"""ONNX's own cases for its operator `Attention`, and the operator spelled in Regard's terms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import regard

CASES = Path(__file__).with_name("onnx_attention.npz")
TOLERANCES = {"float32": (1e-5, 1e-6), "float16": (4e-3, 4e-3), "bfloat16": (3e-2, 3e-2)}


@dataclass(frozen=True)
class Case:
    """Call the operator with these, expect those."""

    name: str
    attributes: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    dtype: str


def load_cases() -> list[Case]:
    with np.load(CASES) as arrays:
        index = json.loads(arrays["index"].tobytes())
        return [_case(entry, arrays) for entry in index if entry["op"] == "Attention"]


def _case(entry: dict[str, Any], arrays: Any) -> Case:
    sides = {
        side: {
            name: _thaw(arrays[f"{entry['name']}/{side}/{name}"], dtype)
            for name, dtype in entry[side].items()
        }
        for side in ("inputs", "outputs")
    }
    return Case(entry["name"], entry["attributes"], **sides, dtype=entry["dtype"])


def _thaw(array: np.ndarray, dtype: str) -> np.ndarray:
    """bfloat16 is stored as its bits."""
    return array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array


def attention(inputs: dict[str, np.ndarray], attributes: dict[str, Any], call: Any) -> dict:
    """The operator's outputs by name; `call(name)` gives regard's function of that name."""
    q, k, v = (_heads(inputs[n], attributes, n) for n in "QKV")
    past = 0
    if "past_key" in inputs:
        past = inputs["past_key"].shape[2]
        k = np.concatenate([inputs["past_key"], k], axis=2)
        v = np.concatenate([inputs["past_value"], v], axis=2)
    mask, bias = _mask(inputs, attributes, past, q.shape[2], k.shape[2])
    scale = attributes.get("scale")
    softcap = attributes.get("softcap") or None
    every = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap}
    y = call("attention")(q, k, v, **every)
    mode = attributes.get("qk_matmul_output_mode", 0)
    if mode == 3:
        qk = call("weights")(q, k, **every).dense()
    else:
        stages = ({"scale": scale}, {"scale": scale, "softcap": softcap}, every)
        qk = call("scores")(q, k, **stages[mode])
    if inputs["Q"].ndim == 3:
        y = y.swapaxes(1, 2).reshape(*inputs["Q"].shape[:2], -1)
    return {"Y": y, "present_key": k, "present_value": v, "qk_matmul_output": qk}


def _heads(array: np.ndarray, attributes: dict[str, Any], name: str) -> np.ndarray:
    if array.ndim == 4:
        return array
    heads = attributes["q_num_heads" if name == "Q" else "kv_num_heads"]
    return array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)


def _mask(
    inputs: dict[str, np.ndarray], attributes: dict[str, Any], past: int, queries: int, keys: int
) -> tuple[Any, Any]:
    """Everything that hides, as a mask, and what is added, as a bias."""
    mask, bias = None, None
    given = inputs.get("attn_mask")
    if given is not None:
        short = [(0, 0)] * (given.ndim - 1) + [(0, keys - given.shape[-1])]
        if given.dtype == bool:
            mask = np.pad(given, short)
        else:
            bias = np.pad(given, short, constant_values=-np.inf)
    offset: Any = past
    lengths = inputs.get("nonpad_kv_seqlen")
    if lengths is not None:
        mask = regard.lengths(keys=lengths) if mask is None else regard.lengths(lengths) & mask
        offset = lengths - queries
    left = attributes.get("left_window_size", -1)
    right = attributes.get("right_window_size", -1)
    sides = [None if size < 0 else size for size in (left, right)]
    if attributes.get("is_causal"):
        sides[1] = 0 if sides[1] is None else min(0, sides[1])
    if sides != [None, None]:
        window = regard.window(*sides, align=offset)
        mask = window if mask is None else window & mask
    return mask, bias
