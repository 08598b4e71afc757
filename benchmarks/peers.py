"""The peers that attention is measured against, each optional, each in a process of its own.

    python benchmarks/peers.py NAME     # what bench_peers.py starts, and talks to in lines of JSON

A peer is a function of (query, key, value), NumPy arrays (B, H, L, D) in float32, of the type to
compute in, and of whether the call is causal. It gives a call without arguments, and what makes a
NumPy array (B, H, L, D) of its result. It raises ImportError where its library is not installed,
and Unsupported where it cannot compute the case. Arrays are converted before the call is timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Call = Callable[[], Any]
Peer = tuple[Call, Callable[[Any], Array]]

THREADS = os.cpu_count() or 1
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the norm of the result


class Unsupported(Exception):
    """The peer cannot compute this case."""


def regard(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    import regard

    tensors = _tensors(q, k, v, dtype)
    mask = regard.causal() if causal else None
    return lambda: regard.attention(*tensors, mask=mask), _of_torch


def torch_sdpa(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    from torch.nn.functional import scaled_dot_product_attention

    tensors = _tensors(q, k, v, dtype)
    return lambda: scaled_dot_product_attention(*tensors, is_causal=causal), _of_torch


def torch_flex(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    tensors = _tensors(q, k, v, dtype)
    mask = None
    if causal:
        mask = create_block_mask(
            lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], device="cpu"
        )
    return lambda: compiled(*tensors, block_mask=mask), _of_torch


def _tensors(q: Array, k: Array, v: Array, dtype: str) -> list[Any]:
    import torch

    torch.set_num_threads(THREADS)
    return [torch.from_numpy(array).to(getattr(torch, dtype)) for array in (q, k, v)]


def _of_torch(output: Any) -> Array:
    return np.asarray(output.float())


def onnx_attention(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    """ONNX's operator Attention."""
    return _onnx("Attention", "", (q, k, v), dtype, {"is_causal": int(causal)}), np.asarray


def onnx_multi_head(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    """onnxruntime's own operator MultiHeadAttention, which has (B, L, H · D)."""
    batch, heads, length, size = q.shape
    flat = tuple(
        np.ascontiguousarray(a.swapaxes(1, 2)).reshape(batch, length, heads * size)
        for a in (q, k, v)
    )
    options = {"num_heads": heads, "unidirectional": int(causal)}
    call = _onnx("MultiHeadAttention", "com.microsoft", flat, dtype, options)
    return call, lambda output: output.reshape(batch, length, heads, size).swapaxes(1, 2)


def _onnx(
    operator: str, domain: str, arrays: tuple[Array, ...], dtype: str, options: dict[str, int]
) -> Call:
    """A session of one operator on arrays that are bound to it; gives the array it writes."""
    import onnxruntime
    from onnx import TensorProto, helper

    if dtype != "float32":
        raise Unsupported(f"no {operator} in {dtype} on a CPU")
    names = ("q", "k", "v")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in zip(names, arrays, strict=True)
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, arrays[0].shape)
    node = helper.make_node(operator, names, ["y"], domain=domain, **options)
    versions = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], operator, inputs, [result])
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    binding, output = session.io_binding(), np.zeros_like(arrays[0])
    for name, array in zip(names, arrays, strict=True):
        binding.bind_cpu_input(name, array)
    binding.bind_output("y", "cpu", 0, np.float32, output.shape, output.ctypes.data)

    def call() -> Array:
        assert len(arrays) == 3  # kept alive: the binding has their addresses alone
        session.run_with_iobinding(binding)
        return output

    return call


def openvino(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    import openvino as ov
    from openvino import opset13

    kind = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}[dtype]
    inputs = [opset13.parameter(a.shape, kind) for a in (q, k, v)]
    node = opset13.scaled_dot_product_attention(*inputs, causal=causal)
    core = ov.Core()
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    core.set_property(
        "CPU", {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": precision}
    )
    request = core.compile_model(ov.Model([node], inputs), "CPU").create_infer_request()
    for place, array in enumerate((q, k, v)):
        tensor = ov.Tensor(kind, array.shape)
        tensor.data[...] = array if dtype == "float32" else _bfloat16_bits(array)
        request.set_input_tensor(place, tensor)

    def read(_: Any) -> Array:
        output = request.get_output_tensor().data
        return output if dtype == "float32" else _from_bfloat16_bits(output)

    return request.infer, read


def _bfloat16_bits(array: Array) -> Array:
    """As OpenVINO's tensors show them, rounded: in an array of float16, which NumPy knows."""
    rounded = array.view(np.uint32) + 0x8000
    return (rounded >> 16).astype(np.uint16).view(np.float16)


def _from_bfloat16_bits(array: Array) -> Array:
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def jax(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    import jax

    arrays = [jax.numpy.asarray(a.swapaxes(1, 2), dtype) for a in (q, k, v)]
    compiled = jax.jit(lambda *a: jax.nn.dot_product_attention(*a, is_causal=causal))
    return lambda: compiled(*arrays).block_until_ready(), _of_lengths_first


def tensorflow(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    """Products and a softmax, as TensorFlow's own tutorials write them."""
    import tensorflow as tf

    _threads_of(tf)
    tensors = [tf.cast(tf.constant(a), dtype) for a in (q, k, v)]
    length = q.shape[2]
    seen = tf.linalg.band_part(tf.ones((length, length), tf.bool), -1, 0) if causal else None

    @tf.function
    def plain(q: Any, k: Any, v: Any) -> Any:
        scores = tf.matmul(q, k, transpose_b=True) * tf.cast(q.shape[-1] ** -0.5, q.dtype)
        if seen is not None:
            scores = tf.where(seen, scores, q.dtype.min)
        return tf.matmul(tf.nn.softmax(scores), v)

    return lambda: plain(*tensors), lambda output: tf.cast(output, tf.float32).numpy()


def keras(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    """keras.ops on TensorFlow."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    _threads_of(tf)
    tensors = [tf.cast(tf.constant(a.swapaxes(1, 2)), dtype) for a in (q, k, v)]

    @tf.function
    def attend(q: Any, k: Any, v: Any) -> Any:
        return keras.ops.dot_product_attention(q, k, v, is_causal=causal)

    def read(output: Any) -> Array:
        return _of_lengths_first(tf.cast(output, tf.float32).numpy())

    return lambda: attend(*tensors), read


def _threads_of(tf: Any) -> None:
    if not tf.config.threading.get_intra_op_parallelism_threads():
        tf.config.threading.set_intra_op_parallelism_threads(THREADS)


def _of_lengths_first(output: Any) -> Array:
    return np.asarray(output).astype(np.float32).swapaxes(1, 2)


def numpy(q: Array, k: Array, v: Array, dtype: str, causal: bool) -> Peer:
    if dtype != "float32":
        raise Unsupported(f"no {dtype}")
    hidden = np.triu(np.ones((q.shape[2], k.shape[2]), bool), 1) if causal else None

    def plain() -> Array:
        scores = (q @ k.swapaxes(-1, -2)) * np.float32(q.shape[-1] ** -0.5)
        if hidden is not None:
            scores[..., hidden] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return scores @ v

    return plain, np.asarray


PEERS: dict[str, tuple[str, Callable[[Array, Array, Array, str, bool], Peer]]] = {
    "regard": ("regard", regard),
    "torch": ("torch", torch_sdpa),
    "flex": ("torch", torch_flex),
    "onnxruntime": ("onnxruntime", onnx_attention),
    "onnxruntime MHA": ("onnxruntime", onnx_multi_head),
    "openvino": ("openvino", openvino),
    "jax": ("jax", jax),
    "tensorflow": ("tensorflow", tensorflow),
    "keras": ("keras", keras),
    "numpy": ("numpy", numpy),
}
"""By name: the package that it is a part of, and the peer."""


def prepare(name: str, shape: list[int], dtype: str, causal: bool) -> Call:
    """The call, once its result has been compared with NumPy's in float32."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for _ in range(3)]
    call, read = PEERS[name][1](*arrays, dtype, causal)
    expected = numpy(*arrays, "float32", causal)[0]()
    off = float(np.linalg.norm(read(call()) - expected) / np.linalg.norm(expected))
    if not off < TOLERANCE[dtype]:
        raise Unsupported(f"its result is off by {off:.1e}")
    return call


def turn(call: Call, seconds: float) -> list[float]:
    """Milliseconds of calls one after another, at least two; the first, not counted, wakes up."""
    call()
    spent: list[float] = []
    start = time.perf_counter()
    while len(spent) < 2 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        spent.append((time.perf_counter() - before) * 1e3)
    return spent


def main() -> None:
    """Answer requests: a case to prepare, or seconds to measure it for."""
    name = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    call: Call = lambda: None  # noqa: E731
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "seconds" in request:
            answer["times"] = turn(call, request["seconds"])
        else:
            try:
                call = prepare(name, **request)
                answer["version"] = sys.modules[PEERS[name][0]].__version__
            except Exception as error:  # whatever a library raises, it is the reason
                said = str(error).strip().splitlines() or [""]
                answer["left out"] = f"{type(error).__name__}: {said[0]}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
