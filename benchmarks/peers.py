"""The peers that attention is measured against, each optional: NumPy arrays in, a call out.

Every function takes (query, key, value) of NumPy (float32; (B, H, L, D), as many key heads as query
heads) and whether the call is causal, and gives a call without arguments that computes the output.
It raises ImportError where its library is not installed, and Unsupported where it cannot compute
the case. Arrays are converted before the call is timed; where a library takes NumPy's own arrays in
the call (onnxruntime, OpenVINO), that is part of using it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]


class Unsupported(Exception):
    """The peer cannot compute this case."""


def regard(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Call:
    import torch

    import regard

    tensors = [torch.from_numpy(a) for a in (q, k, v)]
    mask = regard.causal() if causal else None
    return lambda: regard.attention(*tensors, mask=mask)


def torch_sdpa(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Call:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    tensors = [torch.from_numpy(a) for a in (q, k, v)]
    return lambda: scaled_dot_product_attention(*tensors, is_causal=causal)


def torch_flex(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Call:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    tensors = [torch.from_numpy(a) for a in (q, k, v)]
    mask = None
    if causal:
        mask = create_block_mask(
            lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], device="cpu"
        )
    return lambda: compiled(*tensors, block_mask=mask)


def onnxruntime(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Call:
    import onnxruntime as ort
    from onnx import TensorProto, helper

    def tensor(name: str, array: np.ndarray) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)

    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=int(causal))
    graph = helper.make_graph(
        [node], "attention", [tensor("q", q), tensor("k", k), tensor("v", v)], [tensor("y", q)]
    )
    opset = helper.make_opsetid("", 23)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = _threads()
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"q": q, "k": k, "v": v}
    return lambda: session.run(None, feed)


def openvino(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Call:
    import openvino as ov
    from openvino import opset13

    inputs = [opset13.parameter(a.shape, np.float32) for a in (q, k, v)]
    node = opset13.scaled_dot_product_attention(*inputs, causal=causal)
    core = ov.Core()
    core.set_property(
        "CPU", {"INFERENCE_NUM_THREADS": _threads(), "INFERENCE_PRECISION_HINT": "f32"}
    )
    request = core.compile_model(ov.Model([node], inputs), "CPU").create_infer_request()
    tensors = [ov.Tensor(a, shared_memory=True) for a in (q, k, v)]
    return lambda: request.infer(tensors)


def jax(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Call:
    import jax

    arrays = [jax.numpy.asarray(a.swapaxes(1, 2)) for a in (q, k, v)]
    compiled = jax.jit(lambda *a: jax.nn.dot_product_attention(*a, is_causal=causal))
    return lambda: compiled(*arrays).block_until_ready()


def tensorflow(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Call:
    import tensorflow as tf

    if causal:
        raise Unsupported("the plain expression has no causal form of its own")
    tf.config.threading.set_intra_op_parallelism_threads(_threads())
    tensors = [tf.constant(a) for a in (q, k, v)]

    @tf.function
    def plain(q: Any, k: Any, v: Any) -> Any:
        scores = tf.matmul(q, k, transpose_b=True) * q.shape[-1] ** -0.5
        return tf.matmul(tf.nn.softmax(scores), v)

    return lambda: plain(*tensors).numpy()


def numpy(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Call:
    hidden = np.triu(np.ones((q.shape[2], k.shape[2]), bool), 1) if causal else None

    def plain() -> np.ndarray:
        scores = (q @ k.swapaxes(-1, -2)) * np.float32(q.shape[-1] ** -0.5)
        if hidden is not None:
            scores[..., hidden] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return scores @ v

    return plain


PEERS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, bool], Call]] = {
    "regard": regard,
    "torch": torch_sdpa,
    "flex": torch_flex,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "jax": jax,
    "tensorflow": tensorflow,
    "numpy": numpy,
}

BLHD = {"jax"}  # these give (B, L, H, D)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
