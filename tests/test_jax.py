"""JAX arrays: jit, grad, vmap, scan, buffers where they lie, and jax.nn's own function."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax", reason="JAX is not installed: pip install 'regard[jax]'")

import jax
import jax.numpy as jnp
from jax.test_util import check_grads

import regard
from regard.errors import ArrayTypeError, BackendError, MaskError, OptionError
from regard.frontends.jax import callback, ffi, kernel
from regard.frontends.jax.masks import as_dense, normal
from regard.jax import dot_product_attention
from regard.masks import Extent, visibility

MASKS = {
    "none": None,
    "causal": regard.causal("lower_right"),
    "lengths": regard.lengths(keys=np.array([9, 4])) & regard.window(4, 3, 1),
    "dense": np.random.default_rng(0).random((2, 1, 6, 9)) < 0.6,
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def arrays(*shapes, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]


def problem(dtype="float64", batch=(2,)):
    """q, k, v, bias, sinks."""
    shapes = [(*batch, *rest) for rest in ((4, 6, 8), (2, 9, 8), (2, 9, 5))]
    return arrays(*shapes, (4, 1, 9), (4,), dtype=dtype)


def attend(q, k, v, bias=None, sinks=None, **options):
    return regard.attention(q, k, v, bias=bias, sinks=sinks, **options)


def close(found, expected, unit=1e-11):
    def same(a, b):
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=unit, atol=unit
        )

    jax.tree.map(same, found, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("mask", MASKS)
def test_output_is_numpys(dtype, mask):
    q, k, v, _, _ = problem(dtype)
    y = jax.jit(lambda *a: attend(*a, mask=MASKS[mask]))(q, k, v)
    assert y.dtype == dtype
    wide = (np.asarray(a, np.float64) for a in (q, k, v))
    expected = regard.attention(*wide, mask=MASKS[mask], backend="reference")
    unit = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6}.get(dtype, 2e-13)
    close(y, expected, unit)
    assert jnp.array_equal(attend(q, k, v, mask=MASKS[mask]), y)


@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_the_plain_expressions(mask):
    given, options = problem(), {"mask": MASKS[mask], "softcap": 2.0, "scale": 0.4}

    def gradients(backend):
        def loss(arrays):
            return jnp.square(attend(*arrays, **options, backend=backend)).sum()

        return jax.grad(loss)(given)

    close(gradients("native"), gradients("jax"))
    close(gradients("reference"), gradients("jax"))


def test_gradients_of_the_operator_first_and_second():
    q, k, v, bias, sinks = problem(batch=())
    y = arrays((4, 6, 3), seed=1)[0]

    def products(q, k, v, y, bias, sinks):
        q, k, v, y, bias, sinks = map(jnp.asarray, (q, k, v, y, bias, sinks))
        mask = regard.causal("lower_right")
        w = regard.weights(q, k, mask=mask, bias=bias, sinks=sinks, softcap=2.0)
        return w @ v, w.mT @ y, w.lse()

    check_grads(products, (q, k, v, y, bias, sinks), order=2, modes=["rev"])


def test_only_the_gradients_that_are_wanted_are_computed(monkeypatch):
    asked = []
    plain = ffi.backward

    def watched(problem, kept, wanted):
        asked.append(set(wanted))
        return plain(problem, kept, wanted)

    monkeypatch.setattr(ffi, "backward", watched)
    q, k, v, bias, sinks = problem()
    jax.grad(lambda q, v: attend(q, k, v, bias, sinks).sum(), argnums=(0, 1))(q, v)
    assert asked == [{"query", "value"}]


TRACED = {
    "lengths": (
        lambda n: regard.lengths(keys=n, queries=n),
        jnp.array([9, 4]),
    ),
    "offsets": (lambda n: regard.causal(n) & regard.window(2, None, n), jnp.array([3, -1])),
    "prefix": (lambda n: regard.prefix(n) | regard.causal("lower_right"), jnp.array([0, 7])),
    "dense": (lambda m: m & regard.causal("lower_right"), jnp.asarray(MASKS["dense"])),
    "keys": (regard.keys, jnp.asarray(MASKS["dense"][:, 0, 0])),
    "documents": (
        lambda ids: regard.documents(ids[:, :6], ids),
        jnp.array([[0, 0, 1, 1, 0, -1, 1, -1, 2], [3, 3, 3, 2, 2, 2, 1, 1, 1]]),
    ),
    "cu_lengths": (lambda n: regard.documents(cu_lengths=n), jnp.array([0, 2, 2, 5])),
    "many": (
        lambda n: regard.documents(cu_lengths=n) & MANY & regard.lengths(keys=n[:2]),
        jnp.array([0, 2, 2, 5]),
    ),
}
MANY = regard.keys(np.arange(9)[None] % 2 == 0) & regard.keys(np.ones((2, 9), bool))


@pytest.mark.parametrize("name", TRACED)
def test_masks_with_traced_arrays(name):
    make, array = TRACED[name]
    extent = Extent((2,), 4, 6, 9)
    shown = []

    def dense(array):
        found = normal(make(array), extent)
        shown.append(found)
        return as_dense(found, 9)

    expected = visibility(make(np.asarray(array)), extent).as_dense(9)
    found = jax.jit(dense)(array)
    assert np.array_equal(
        np.broadcast_to(found, extent.shape), np.broadcast_to(expected, extent.shape)
    )
    assert any(isinstance(a, jax.core.Tracer) for a in (shown[0].intervals, shown[0].dense))


def test_a_traced_mask_that_does_not_fit_says_so():
    q, k, v, _, _ = problem()
    for mask, text in (
        (lambda n: regard.lengths(keys=jnp.tile(n, 3)), r"lengths.* of shape \(6,\)"),
        (lambda n: regard.keys(jnp.tile(n > 0, 2)), r"keys\(keep\) of shape \(4,\)"),
        (lambda n: jnp.ones((3, 9), bool) & (n[0] > 0), r"a mask of shape \(3, 9\)"),
    ):
        with pytest.raises(MaskError, match=text):
            jax.jit(lambda n, mask=mask: attend(q, k, v, mask=mask(n)))(jnp.array([9, 4]))


MAPPED = {  # of q, k, v, bias, sinks and the mask's array
    "all": (0, 0, 0, 0, 0, 0),
    "queries": (0, None, None, None, None, None),
    "keys": (None, 0, 0, None, None, None),
    "bias": (None, None, None, 0, None, 0),
}


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("name", MAPPED)
def test_vmap_is_a_loop(name, batch):
    axes = MAPPED[name]
    ids = jnp.asarray(np.random.default_rng(3).integers(0, 2, (3, *batch[:1], 9)))
    mapped = [*problem(batch=(3, *batch))[:3], *arrays((3, 4, 1, 9), (3, 4)), ids]
    given = [a if axis == 0 else a[1] for a, axis in zip(mapped, axes, strict=True)]

    def loss(q, k, v, bias, sinks, ids):
        mask = regard.documents(ids[..., :6].reshape(-1, 6), ids.reshape(-1, 9))
        y = attend(q, k, v, bias, sinks, mask=mask)
        return jnp.square(y).sum(), y

    call = jax.value_and_grad(loss, argnums=range(5), has_aux=True)
    found = jax.vmap(call, in_axes=axes)(*given)
    each = [
        call(*(a[n] if axis == 0 else a for a, axis in zip(given, axes, strict=True)))
        for n in range(3)
    ]
    close(found, jax.tree.map(lambda *parts: jnp.stack(parts), *each))
    together = jax.grad(
        lambda *a: jax.vmap(loss, in_axes=axes)(*a, given[5])[0].sum(), argnums=range(5)
    )(*given[:5])
    sums = [a if axis == 0 else a.sum(axis=0) for a, axis in zip(found[1], axes, strict=False)]
    close(list(together), sums)


def test_vmap_reads_what_it_does_not_map_where_it_lies():
    q, k, v, _, _ = problem(batch=())
    text = str(jax.make_jaxpr(jax.vmap(lambda q: attend(q, k, v)))(jnp.stack([q] * 7)))
    assert "f64[1,2,9,8]" in text and "f64[7,2,9,8]" not in text


def test_checkpoint_and_scan():
    (x,) = arrays((2, 3, 7, 8))

    def layer(backend):
        return jax.checkpoint(
            lambda x, _: (x + attend(x, x, x, mask=regard.causal(), backend=backend), None)
        )

    def loss(backend):
        return lambda x: jax.lax.scan(layer(backend), x, None, length=3)[0].sum()

    close(jax.jit(jax.grad(loss(None)))(x), jax.grad(loss("jax"))(x))


@pytest.mark.parametrize("layout", ["BHLD", "BLHD"])
def test_xla_passes_the_buffers_themselves(layout):
    q, k, v = arrays((1, 64, 4, 16), (1, 64, 4, 16), (1, 64, 4, 16), dtype="float32")
    fast = jax.jit(lambda *a: regard.attention(*a, mask=regard.causal(), layout=layout))
    made = fast.lower(q, k, v).compile()
    entry = made.as_text().partition("ENTRY")[2]
    operands = re.search(r"custom-call\(%(\S+), %(\S+), %(\S+),", entry).groups()
    for name in operands:
        assert re.search(rf"%{re.escape(name)} = \S+ parameter\(", entry), name
    assert "copy" not in entry and "transpose" not in entry
    log_sum_exp = 4 * 64 * (4 if layout == "BLHD" else 64)
    assert made.memory_analysis().temp_size_in_bytes < log_sum_exp + q.nbytes / 8


def test_our_declarations_of_xlas_structs_are_its_own(tmp_path):
    """A compiler compares every offset and size in native/xla/ffi.h with jaxlib's header."""
    structs = {
        "Extension": ("XLA_FFI_Extension_Base", {"next": "next", "type": "type"}),
        "Version": (
            "XLA_FFI_Api_Version",
            {"major_version": "major_version", "minor_version": "minor_version"},
        ),
        "ErrorArguments": ("XLA_FFI_Error_Create_Args", {"message": "message", "code": "errc"}),
        "Buffer": (
            "XLA_FFI_Buffer",
            {"dtype": "dtype", "data": "data", "rank": "rank", "dims": "dims"},
        ),
        "Text": ("XLA_FFI_ByteSpan", {"data": "ptr", "size": "len"}),
        "Scalar": ("XLA_FFI_Scalar", {"dtype": "dtype", "value": "value"}),
        "Attributes": (
            "XLA_FFI_Attrs",
            {"size": "size", "types": "types", "names": "names", "items": "attrs"},
        ),
        "CallFrame": (
            "XLA_FFI_CallFrame",
            {
                "api": "api",
                "stage": "stage",
                "arguments": "args",
                "results": "rets",
                "attributes": "attrs",
            },
        ),
        "MetadataExtension": ("XLA_FFI_Metadata_Extension", {"metadata": "metadata"}),
    }
    offsets = [
        (ours, mine, theirs, its)
        for ours, (theirs, fields) in structs.items()
        for mine, its in {"struct_size": "struct_size", **fields}.items()
        if mine != "struct_size" or ours not in ("Text", "Scalar", "MetadataExtension")
    ]
    offsets += [
        ("Buffers", "items", "XLA_FFI_Args", "args"),
        ("Buffers", "items", "XLA_FFI_Rets", "rets"),
        ("Api", "version", "XLA_FFI_Api", "api_version"),
        ("Api", "create_error", "XLA_FFI_Api", "XLA_FFI_Error_Create"),
        ("Metadata", "version", "XLA_FFI_Metadata", "api_version"),
        ("Metadata", "traits", "XLA_FFI_Metadata", "traits"),
    ]
    numbers = {
        "kInvalidArgument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
        "kResourceExhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
        "kFloat16": "XLA_FFI_DataType_F16",
        "kFloat32": "XLA_FFI_DataType_F32",
        "kFloat64": "XLA_FFI_DataType_F64",
        "kBfloat16": "XLA_FFI_DataType_BF16",
        "kExecute": "XLA_FFI_ExecutionStage_EXECUTE",
        "kMetadata": "XLA_FFI_Extension_Metadata",
    }
    lines = [
        '#include "xla/ffi/api/c_api.h"',
        '#include "xla/ffi.h"',
        "using namespace regard::xla;",
    ]
    lines += [
        f"static_assert(offsetof({ours}, {mine}) == offsetof({theirs}, {its}) &&"
        f" sizeof({ours}::{mine}) == sizeof({theirs}::{its}));"
        for ours, mine, theirs, its in offsets
    ]
    lines += [f"static_assert({mine} == static_cast<int>({its}));" for mine, its in numbers.items()]
    source = tmp_path / "compare.cpp"
    source.write_text("\n".join(lines) + "\n")
    native = Path(__file__).parent.parent / "native"
    includes = (f"-I{folder}" for folder in (jax.ffi.include_dir(), native))
    done = subprocess.run(
        ["c++", "-std=c++17", "-fsyntax-only", *includes, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_dropout_is_numpys_for_the_same_seed_and_takes_keys():
    q, k, v, _, _ = problem()
    for seed in (5, -1, 2**40 + 3):
        y = attend(q, k, v, dropout_p=0.4, dropout_seed=seed)
        given = (np.asarray(a) for a in (q, k, v))
        close(y, regard.attention(*given, dropout_p=0.4, dropout_seed=seed))
        traced = jax.jit(lambda s: attend(q, k, v, dropout_p=0.4, dropout_seed=s))
        close(traced(jnp.int64(seed)), y)
    small = jax.jit(lambda s: attend(q, k, v, dropout_p=0.4, dropout_seed=s))
    for seed in (jnp.int32(-1), jnp.int32(70_000), jnp.uint32(2**32 - 1)):
        close(small(seed), attend(q, k, v, dropout_p=0.4, dropout_seed=int(seed)))
    one, other = (small(jax.random.key(n)) for n in (0, 1))
    assert jnp.array_equal(one, small(jax.random.key(0))) and not jnp.array_equal(one, other)
    with pytest.raises(OptionError, match=r"a key of jax\.random"):
        attend(q, k, v, dropout_p=0.4)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_through_dropout_and_its_vmap(backend):
    q, k, v, _, _ = problem()

    def loss(q):
        return jnp.square(attend(q, k, v, dropout_p=0.4, dropout_seed=7, backend=backend)).sum()

    check_grads(lambda q: loss(jnp.asarray(q)), (q,), order=1, modes=["rev"])
    pair = jnp.stack([q, 2 * q])
    close(jax.vmap(jax.grad(loss))(pair), jnp.stack([jax.grad(loss)(a) for a in pair]))


def test_gradients_of_queries_that_see_nothing_do_not_count():
    mask = regard.lengths(queries=np.array([6, 2]))
    _, pull = jax.vjp(lambda *a: attend(*a, mask=mask), *problem())
    for gradient in pull(jnp.ones((2, 4, 6, 5)).at[1, :, 2:].set(jnp.nan)):
        assert jnp.isfinite(gradient).all()


def test_read_outs_are_numpys_and_refused_inside_transformations():
    q, k, v, bias, _ = problem()
    options = {"mask": MASKS["lengths"], "bias": bias}
    w = regard.weights(q, k, **options)
    plain = regard.weights(
        np.asarray(q), np.asarray(k), mask=MASKS["lengths"], bias=np.asarray(bias)
    )
    for look in (
        lambda w: w.entropy(),
        lambda w: w.top_k(3),
        lambda w: w.dense(),
        lambda w: w[1, 3:, 2],
        lambda w: w[:, 1:].received(),
        lambda w: w.copy().lse(),
    ):
        found = look(w)
        assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(found))
        close(found, look(plain))
    y, seen = regard.weights(q, k, **options).attend(v, top_k=2, entropy=True)
    close((y, seen.top_k, seen.entropy), (w @ v, plain.top_k(2), plain.entropy()))
    _, seen = regard.weights(q, k, **options).attend(v, lse=True)
    close(seen.lse, plain.lse())
    for transform in (jax.jit, lambda f: jax.vmap(f), lambda f: jax.grad(lambda q: f(q).sum())):
        with pytest.raises(BackendError, match="read out outside"):
            transform(lambda q: regard.weights(q, k[0] if q.ndim == 3 else k).entropy())(q)


def test_the_plan_says_how_the_kernel_is_called(monkeypatch):
    q, k, v, _, _ = problem()
    text = str(regard.plan(q, k, v, mask=MASKS["causal"]))
    assert "native" in text and "XLA's foreign-function interface" in text
    assert "jax.pure_callback" in str(regard.plan(q, k, v, backend="reference"))
    assert "quadratic" in str(regard.plan(q, k, v, backend="jax"))
    seen = []
    jax.jit(lambda n: seen.append(regard.plan(q, k, v, mask=regard.lengths(n))) or n)(jnp.arange(2))
    assert "worked out when the function runs" in str(seen[0])
    monkeypatch.setattr(ffi, "available", lambda: "XLA is too old")
    assert "jax.pure_callback, results copied (XLA is too old)" in str(regard.plan(q, k, v))
    called = []
    plain = callback.forward
    monkeypatch.setattr(callback, "forward", lambda *a: called.append(a) or plain(*a))
    assert not kernel.through_xla(None)
    close(attend(q + 1, k, v, scale=0.123), attend(q + 1, k, v, scale=0.123, backend="jax"))
    assert called


def test_forward_mode_is_refused_by_jax_and_known_to_the_plain_expression():
    q, k, v, bias, sinks = problem(batch=())
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda q: attend(q, k, v), (q,), (q,))
    check_grads(
        lambda *a: attend(*map(jnp.asarray, a), backend="jax", softcap=3.0),
        (q, k, v, bias, sinks),
        order=1,
        modes=["fwd"],
    )
    reverse = jax.jacrev(jax.jacrev(lambda q: attend(q, k, v).sum()))(q)
    close(reverse, jax.hessian(lambda q: attend(q, k, v, backend="jax").sum())(q))
    with pytest.raises(BackendError, match="dropout_p"):
        attend(q, k, v, dropout_p=0.1, dropout_seed=1, backend="jax")


def test_traced_numbers_are_refused():
    q, k, v, _, _ = problem()
    with pytest.raises(OptionError, match=r"scale of type .*Tracer.*known in advance"):
        jax.jit(lambda s: attend(q, k, v, scale=s))(2.0)


def test_one_program_serves_every_seed_and_every_mask_of_a_shape(monkeypatch):
    q, k, v, _, _ = problem("float32")
    traced = []
    plain = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *a: traced.append(a) or plain(*a))
    for n in (3, 5, 8):
        mask = regard.lengths(keys=np.array([n, 4]))
        attend(q, k, v, mask=mask, scale=0.77, dropout_p=0.1, dropout_seed=n)
    assert len(traced) == 1


def test_attention_works_after_many_calls_at_once():
    q, k, v, _, _ = problem("float32")
    fast = jax.jit(lambda q: attend(q, k, v))
    found = [fast(q + n) for n in range(50)]  # JAX does not wait for one before the next
    for n in (0, 17, 49):
        close(found[n], attend(q + n, k, v), 1e-6)


def test_regard_jax_is_loaded_on_request_only():
    code = "import sys, regard; print('jax' in sys.modules); import regard.jax; print(regard.jax)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[0] == "False" and "regard.jax" in said.stdout


BIAS = jnp.asarray(np.random.default_rng(1).standard_normal((2, 1, 7, 5)), jnp.float32)
DENSE = jnp.asarray(np.random.default_rng(2).random((1, 4, 7, 5)) < 0.4)
LENGTHS = {"query_seq_lengths": [3, 7], "key_value_seq_lengths": [0, 4]}
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "bias": {"bias": BIAS, "return_residual": True},
    "mask": {"mask": DENSE, "return_residual": True},
    "window": {"local_window_size": 1, "return_residual": True},
    "two-sided window": {"local_window_size": (2, 0), "is_causal": True},
    "query lengths": {"query_seq_lengths": [3, 7], "return_residual": True},
    "key lengths": {"key_value_seq_lengths": [0, 4], "return_residual": True},
    "all": {"bias": BIAS, "mask": DENSE, "is_causal": True, "return_residual": True}
    | {"local_window_size": (3, 1), **LENGTHS},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_dot_product_attention_is_jax_nns(name):
    q, k, v = arrays((2, 7, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8), dtype="float32")
    options = {
        n: jnp.array(o, jnp.int32) if "lengths" in n else o for n, o in OPTIONS[name].items()
    }
    bias = options.pop("bias", None)

    def run(function):
        def loss(arrays):
            found = function(*arrays[:3], arrays[3], **options)
            y = found[0] if isinstance(found, tuple) else found
            return (y * jnp.arange(y.size).reshape(y.shape)).sum() / 100, found

        return jax.value_and_grad(loss, has_aux=True)((q, k, v, bias))

    found, expected = run(dot_product_attention), run(jax.nn.dot_product_attention)
    shapes, wanted = (
        jax.tree.map(lambda a: (a.shape, a.dtype), r[0][1]) for r in (found, expected)
    )
    assert shapes == wanted
    close(found, expected, 3e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dot_product_attention_in_narrow_types(dtype):
    q, k, v = arrays((7, 4, 8), (5, 4, 8), (5, 4, 8), dtype=dtype)
    options = {"mask": DENSE[0], "return_residual": True}
    found, expected = (
        function(q, k, v, BIAS[0], **options)
        for function in (dot_product_attention, jax.nn.dot_product_attention)
    )
    assert found[0].shape == (7, 4, 8) and found[1].shape == (7, 4)
    assert found[0].dtype == found[1].dtype == dtype
    close(found, expected, 2e-2)


def test_dot_product_attention_hands_named_implementations_to_jax(monkeypatch):
    (q,) = arrays((7, 4, 8), dtype="float32")
    asked = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **o: asked.append(o))
    dot_product_attention(q, q, q, implementation="xla", is_causal=True)
    assert asked[0]["implementation"] == "xla" and asked[0]["is_causal"]


def test_jax_nn_function_says_what_it_wants():
    q = jnp.ones((1, 6, 4, 8))
    for query in (None, [[1.0]]):
        with pytest.raises(ArrayTypeError, match="query of type"):
            dot_product_attention(query, q, q)
    for name in ("bias", "mask", "query_seq_lengths", "key_value_seq_lengths"):
        with pytest.raises(ArrayTypeError, match=f"{name} of type str"):
            dot_product_attention(q, q, q, **{name: "x"})
    with pytest.raises(OptionError, match="scale as an array"):
        dot_product_attention(q, q, q, scale=jnp.ones(()))
    for wrong in ((1,), (1, 2, 3), 1.5):
        with pytest.raises(OptionError, match="one number for both"):
            dot_product_attention(q, q, q, local_window_size=wrong)


def test_lists_are_arrays_to_jax_nn_s_function():
    q = jax.random.normal(jax.random.key(0), (1, 6, 4, 8))
    close(
        dot_product_attention(q, q, q, key_value_seq_lengths=[3], local_window_size=[1, 2]),
        dot_product_attention(
            q, q, q, key_value_seq_lengths=jnp.array([3]), local_window_size=(1, 2)
        ),
    )


BIASES = {  # of what they are made of
    "alibi": ((4,), lambda a: regard.alibi(a, align="lower_right")),
    "t5": ((16, 4), lambda a: regard.t5_bias(a, max_distance=12, align="lower_right")),
    "relative": ((1, 7), lambda a: regard.relative_bias(a, align="lower_right")),
}


@pytest.mark.parametrize("name", BIASES)
def test_biases_by_distance(name):
    q, k, v, *_ = problem()
    shape, make = BIASES[name]
    (given,) = arrays(shape, seed=4)

    def loss(q, k, v, given, backend=None):
        y = attend(q, k, v, make(given), mask=MASKS["lengths"], backend=backend)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum()

    numpys = [np.asarray(a) for a in (q, k, v)]
    expected = attend(*numpys, make(np.asarray(given)), backend="reference")
    close(jax.jit(lambda *a: attend(*a[:3], make(a[3])))(q, k, v, given), expected)
    expected = jax.grad(lambda *a: loss(*a, backend="jax"), argnums=(0, 1, 2, 3))(q, k, v, given)
    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, given)
    close(found, expected)
    check_grads(loss, (q, k, v, given), order=2, modes=["rev"])
    many = jnp.stack([given, 2 * given])
    mapped = jax.vmap(jax.grad(loss, argnums=3), (None, None, None, 0))(q, k, v, many)
    close(mapped, jnp.stack([jax.grad(loss, argnums=3)(q, k, v, one) for one in many]))


def test_a_bias_by_distance_with_a_traced_offset_and_through_python():
    q, k, v, *_ = problem()
    (slopes,) = arrays((4,), seed=4)

    @jax.jit
    def step(offset):
        return attend(q, k, v, regard.alibi(slopes, align=offset))

    expected = attend(q, k, v, regard.alibi(slopes, align=5))
    close(step(5), expected)
    found = attend(q, k, v, regard.alibi(slopes, align=5), backend="reference")
    close(found, expected)
    w = regard.weights(q, k, bias=regard.alibi(slopes, align=5))
    close(w @ v, expected)
    assert w.entropy().shape == (2, 4, 6)
