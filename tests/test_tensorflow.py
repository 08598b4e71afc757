"""TensorFlow's tensors: inside tf.function, with gradients of all orders, where they lie."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pytest

import regard
from regard import dispatch
from regard.errors import (
    ArrayTypeError,
    BackendError,
    DtypeError,
    MaskError,
    OptionError,
    ShapeError,
)
from regard.kernels import native
from regard.score import Additive, Bilinear

tf = pytest.importorskip("tensorflow")

from regard.frontends import tensorflow as front  # noqa: E402

rng = np.random.default_rng(0)
SHAPES = {"query": (2, 4, 6, 8), "key": (2, 2, 9, 8), "value": (2, 2, 9, 5)}
QUERY, KEY, VALUE = (rng.standard_normal(shape, np.float32) for shape in SHAPES.values())
BIAS = rng.standard_normal((2, 1, 6, 9), np.float32)
SINKS = rng.standard_normal(4, np.float32)
DENSE = rng.random((2, 1, 6, 9)) < 0.6
DENSE[1, 0, 2] = False
ONE_HEAD = [np.ascontiguousarray(a[:, :2]) for a in (QUERY, KEY, VALUE)]
SCORES = {
    "bilinear": lambda: (
        (QUERY, KEY[..., :7], VALUE),
        Bilinear(tf.constant(rng.standard_normal((8, 7), np.float32))),
    ),
    "additive": lambda: (
        (QUERY, KEY[..., :7], VALUE),
        Additive(*(tf.constant(rng.standard_normal(s, np.float32)) for s in ((8, 3), (7, 3), 3))),
    ),
}


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        np.asarray(found, np.float64),
        np.asarray(expected, np.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def tensors(*arrays):
    return [tf.constant(array) for array in arrays]


def unknown(array):
    """The type of an array of which only rank, heads and size are known."""
    sizes = [None] * array.ndim
    if array.ndim == 4:
        sizes[1], sizes[3] = array.shape[1], array.shape[3]
    return tf.TensorSpec(sizes, array.dtype)


CALLS = {
    "none": (dict, []),
    "bias and sinks": (lambda bias, sinks: {"bias": bias, "sinks": sinks}, [BIAS, SINKS]),
    "causal": (lambda: {"mask": regard.causal("lower_right") & regard.window(3, 0, 3)}, []),
    "dense": (lambda seen: {"mask": seen & regard.prefix(7)}, [DENSE]),
    "lengths": (lambda n: {"mask": regard.lengths(keys=n)}, [np.array([9, 4])]),
    "keys": (lambda keep: {"mask": regard.keys(keep) | regard.prefix(1)}, [DENSE[:, 0, 0]]),
    "known": (lambda: {"mask": regard.keys(DENSE[:, 0, 0])}, []),
    "dropout": (lambda: {"dropout_p": 0.4, "dropout_seed": 2**40 + 11}, []),
    "drawn": (lambda seed: {"dropout_p": 0.4, "dropout_seed": seed}, [np.int64(2**40)]),
    "layout": (lambda: {"layout": "BLHD"}, []),
}


def attention_and_gradients(given, arrays, make):
    """Output, and the gradients of what has one."""
    leaves = [array for array in arrays if array.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch(leaves)
        y = regard.attention(*arrays[:3], **make(*arrays[3:]), **given)
        loss = tf.reduce_sum(y * y)
    return y, *tape.gradient(loss, leaves)


@pytest.mark.parametrize("shapes", ["known", "unknown"])
@pytest.mark.parametrize("name", CALLS)
def test_inside_a_function_as_outside(name, shapes):
    make, more = CALLS[name]
    arrays = [QUERY, KEY, VALUE, *more]
    if name == "layout":
        arrays[:3] = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in arrays[:3])
    specs = [unknown(a) if shapes == "unknown" else tf.TensorSpec(a.shape, a.dtype) for a in arrays]
    if shapes == "unknown" and name == "layout":
        specs[:3] = [tf.TensorSpec([None, None, *a.shape[2:]], a.dtype) for a in arrays[:3]]
    traced = tf.function(
        lambda *arrays: attention_and_gradients({}, arrays, make), input_signature=specs
    )
    given = tensors(*arrays)
    for found, expected in zip(
        traced(*given), attention_and_gradients({}, given, make), strict=True
    ):
        close(found, expected)
    static = traced.get_concrete_function().structured_outputs[0].shape
    assert static.rank == 4 and static[-1] == 5 and (shapes == "unknown") == (None in static)


@pytest.mark.parametrize("shapes", ["known", "unknown"])
@pytest.mark.parametrize("name", SCORES)
def test_scores_have_gradients_inside_a_function(name, shapes):
    (q, k, v), score = SCORES[name]()
    given = tensors(q, k, v)

    def gradients(*arrays, backend=None):
        weights = [a for a in vars(score).values() if tf.is_tensor(a)]
        with tf.GradientTape() as tape:
            tape.watch([*arrays, *weights])
            y = regard.attention(*arrays, score=score, backend=backend)
            loss = tf.reduce_sum(y * y)
        return tape.gradient(loss, [*arrays, *weights])

    specs = [unknown(a) for a in (q, k, v)] if shapes == "unknown" else None
    expected = gradients(*given, backend="tensorflow")
    for found in (gradients(*given), tf.function(gradients, input_signature=specs)(*given)):
        for ours, theirs in zip(found, expected, strict=True):
            close(ours, theirs, 1e-4)


@pytest.mark.parametrize("name", ["bias and sinks", "dense", "layout"])
def test_gradients_first_and_second_are_the_plain_expressions(name):
    make, more = CALLS[name]
    arrays = [QUERY, KEY, VALUE, *more]
    if name == "layout":
        arrays[:3] = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in arrays[:3])
    arrays = tensors(*arrays)
    leaves = [array for array in arrays if array.dtype.is_floating]

    def derivatives(backend):
        with tf.GradientTape() as outer:
            outer.watch(leaves)
            with tf.GradientTape() as inner:
                inner.watch(leaves)
                y = regard.attention(*arrays[:3], **make(*arrays[3:]), backend=backend)
                loss = tf.reduce_sum(tf.sin(y))
            first = inner.gradient(loss, leaves)
            square = tf.add_n([tf.reduce_sum(a * a) for a in first])
        return [*first, *outer.gradient(square, leaves)]

    for run in (lambda backend: derivatives(backend), tf.function(derivatives)):
        for found, expected in zip(run(None), derivatives("tensorflow"), strict=True):
            close(found, expected, 2e-4)


def test_products_and_lse_of_the_operator_have_gradients_of_both_orders():
    q, k, y, sinks = tensors(QUERY, KEY, QUERY[..., :3], SINKS)

    def derivatives(backend):
        with tf.GradientTape() as outer:
            outer.watch([q, k, y, sinks])
            with tf.GradientTape() as inner:
                inner.watch([q, k, y, sinks])
                mask = regard.causal("lower_right")
                w = regard.weights(q, k, mask=mask, sinks=sinks, backend=backend)
                loss = tf.reduce_sum(tf.sin(w.mT @ y)) + tf.reduce_sum(tf.cos(w.lse()))
            first = inner.gradient(loss, [q, k, y, sinks])
            square = tf.add_n([tf.reduce_sum(a * a) for a in first])
        return [*first, *outer.gradient(square, [q, k, y, sinks])]

    for run in (derivatives, tf.function(derivatives)):
        for found, expected in zip(run(None), derivatives("tensorflow"), strict=True):
            close(found, expected, 2e-4)


def test_forward_mode_is_refused_and_known_to_the_plain_expression():
    q, k, v = tensors(QUERY, KEY, VALUE)
    with tf.autodiff.ForwardAccumulator(q, tf.ones_like(q)) as forward:
        y = regard.attention(q, k, v, backend="tensorflow")
        with pytest.raises(BackendError, match="ForwardAccumulator"):
            regard.attention(q, k, v)
    step = 1e-2 * np.ones_like(QUERY)
    slope = regard.attention(QUERY + step, KEY, VALUE) - regard.attention(QUERY - step, KEY, VALUE)
    close(forward.jvp(y), slope / 2e-2, 1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_outputs_and_gradients_are_of_the_type_that_went_in(dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    arrays = [a.astype(kind) for a in (QUERY, KEY, VALUE)]
    given = tensors(*arrays)
    found = attention_and_gradients({}, given, dict)
    in_graph = tf.function(lambda *a: attention_and_gradients({}, a, dict))(*given)
    assert {a.dtype for a in (*found, *in_graph)} == {tf.as_dtype(dtype)}
    close(found[0], regard.attention(*arrays), 1e-6)
    for ours, theirs in zip(in_graph, found, strict=True):
        close(ours, theirs, 1e-6)


@pytest.mark.parametrize("layout", ["BHLD", "BLHD"])
@pytest.mark.parametrize("gradients", [False, True])
def test_nothing_is_copied(monkeypatch, layout, gradients):
    axes = (0, 1, 2, 3) if layout == "BHLD" else (0, 2, 1, 3)
    given = [tf.transpose(tf.constant(a), axes) for a in (QUERY, KEY, VALUE)]
    addresses = [np.asarray(tensor).ctypes.data for tensor in given]
    written = []

    def forward(problem, output, lse, backend=None):
        arrays = (problem.query, problem.key, problem.value)
        assert [array.ctypes.data for array in arrays] == addresses
        written.append(output.ctypes.data)
        native.forward(problem, output, lse)

    monkeypatch.setattr(dispatch, "forward", forward)
    with tf.GradientTape() as tape:
        if gradients:
            tape.watch(given)
        y = regard.attention(*given, layout=layout, sinks=tf.constant(SINKS))
    assert written == [np.asarray(y).ctypes.data]
    assert np.asarray(y).ctypes.data % 64 == 0  # as TensorFlow's own kernels want it
    inside = tf.function(lambda *a: regard.attention(*a, layout=layout, sinks=SINKS_TENSOR()))
    z = inside(*given)
    close(z, y)
    assert written[1] == np.asarray(z).ctypes.data


def SINKS_TENSOR():  # noqa: N802
    return tf.constant(SINKS)


def test_plain_calls_are_repeated_without_being_made_again(monkeypatch):
    given = tensors(QUERY, KEY, VALUE)
    bias = tf.constant(BIAS)
    first = [regard.attention(*given, layout="BHLD"), regard.attention(*given, bias=bias)]
    monkeypatch.setattr(front, "make", None)
    again = [regard.attention(*given, layout="BHLD"), regard.attention(*given, bias=bias)]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    with tf.GradientTape() as tape, pytest.raises(TypeError):  # it takes the long way
        tape.watch(given)
        regard.attention(*given, layout="BHLD")


def test_a_constant_bias_gets_no_gradient(monkeypatch):
    wanted = []
    backward = dispatch.backward
    monkeypatch.setattr(
        dispatch, "backward", lambda *a, **named: (wanted.append(set(named)), backward(*a, **named))
    )
    q, k, v, bias = tensors(QUERY, KEY, VALUE, BIAS)
    with tf.GradientTape() as tape:
        tape.watch([q, v])
        y = regard.attention(q, k, v, bias=bias)
    assert None not in tape.gradient(y, [q, v])
    assert wanted == [{"d_query", "d_value"}]


def test_variables_and_dropout_from_tensorflows_generator():
    q, k, v = (tf.Variable(a) for a in (QUERY, KEY, VALUE))
    with tf.GradientTape() as tape:
        y = regard.attention(q, k, v)
    close(y, regard.attention(QUERY, KEY, VALUE))
    assert tape.gradient(y, k).shape == KEY.shape

    @tf.function
    def dropped():
        return regard.attention(q, k, v, dropout_p=0.5)

    runs = []
    for _ in range(2):
        tf.random.set_seed(3)
        runs.append((dropped(), dropped(), regard.attention(q, k, v, dropout_p=0.5)))
    assert all(np.array_equal(*pair) for pair in zip(*runs, strict=True))
    assert not np.array_equal(runs[0][0], runs[0][1])


def test_gradients_of_queries_that_see_nothing_do_not_count():
    q, k, v = tensors(QUERY, KEY, VALUE)
    with tf.GradientTape() as tape:
        tape.watch(v)
        y = regard.attention(q, k, v, mask=regard.lengths(queries=tf.constant([6, 3])))
    d_y = np.ones(y.shape, np.float32)
    d_y[1, :, 3:] = np.nan
    assert np.isfinite(tape.gradient(y, v, tf.constant(d_y))).all()


def test_read_outs_are_numpys_and_refused_inside_functions():
    q, k, v = tensors(QUERY, KEY, VALUE)
    w, expected = regard.weights(q, k), regard.weights(QUERY, KEY)
    found = w.read(read_outs="default", similarity=True)
    for name, ours in vars(expected.read(read_outs="default", similarity=True)).items():
        mine = getattr(found, name)
        pairs = zip(mine, ours, strict=True) if isinstance(ours, tuple) else [(mine, ours)]
        for one, other in pairs:
            assert isinstance(one, tf.Tensor) and np.array_equal(one, other), name
    for watched in ([], [q]):
        with tf.GradientTape() as tape:
            tape.watch(watched)
            y, seen = w.attend(v, top_k=2, entropy=True)
        np.testing.assert_array_equal(y, regard.attention(QUERY, KEY, VALUE))
        np.testing.assert_array_equal(seen.top_k.keys, expected.top_k(2).keys)
        close(seen.entropy, expected.entropy())
        assert bool(watched) == (tape.gradient(y, q) is not None)
    close(w[1, 1:3] @ v[1], expected[1, 1:3] @ VALUE[1])
    close(w[..., 3].numpy(), expected.dense()[..., 3])
    close(pickle.loads(pickle.dumps(w.copy())).dense(), expected.dense())
    for read in (lambda w: w.entropy(), lambda w: w.dense(), lambda w: w.attend(v, lse=True)[0]):
        with pytest.raises(BackendError, match=r"a read-out inside tf\.function"):
            tf.function(lambda q, read=read: read(regard.weights(q, k)), autograph=False)(q)


def test_one_matrix_of_values_and_the_other_layout():
    q, k, v = (tf.constant(np.ascontiguousarray(a.swapaxes(1, 2))) for a in (QUERY, KEY, VALUE))
    w = regard.weights(q, k, layout="BLHD")
    expected = regard.weights(QUERY, KEY)
    close(w @ v, (expected @ VALUE).swapaxes(1, 2))
    close(w @ tf.constant(VALUE[0, 0]), (expected @ VALUE[0, 0]).swapaxes(1, 2))
    close(w.mT @ (w @ v), (expected.mT @ (expected @ VALUE)).swapaxes(1, 2))


def test_along_the_edges_of_a_graph():
    edges = np.array([[0, 1, 2, 5, 3, 3], [0, 0, 1, 1, 2, 4]])
    bias = rng.standard_normal((4, 1, 6)).astype("f4")
    x = rng.standard_normal((2, 4, 6, 8)).astype("f4")
    options = {"mask": regard.graph(edges), "bias": bias}
    given, own = tf.constant(x), {**options, "bias": tf.constant(bias)}
    expected = regard.attention(x, x, x, **options)
    close(regard.attention(given, given, given, **own), expected)
    close(tf.function(lambda a: regard.attention(a, a, a, **own))(given), expected)
    close(regard.weights(given, given, **own).entropy(), regard.weights(x, x, **options).entropy())
    assert regard.weights(given, given, **own).on_edges().shape == (2, 4, 6)


def test_xla_compiles_the_plain_expression_alone():
    q, k, v, seen = tensors(QUERY, KEY, VALUE, DENSE)
    options = {"mask": seen & regard.prefix(8), "backend": "tensorflow"}
    compiled = tf.function(lambda *a: regard.attention(*a, **options), jit_compile=True)
    close(compiled(q, k, v), regard.attention(q, k, v, mask=seen & regard.prefix(8)))
    traced = tf.function(
        lambda q, seen: regard.attention(q, k, v, mask=seen, backend="tensorflow"),
        jit_compile=True,
    )
    close(traced(q, seen), regard.attention(q, k, v, mask=seen))
    with pytest.raises(tf.errors.InvalidArgumentError, match="PyFunc"):
        tf.function(regard.attention, jit_compile=True)(q, k, v)


def test_the_plan_says_how_the_kernel_is_called():
    q, k, v = tensors(QUERY, KEY, VALUE)
    assert "tensors where they lie" in str(regard.plan(q, k, v))
    assert regard.plan(q, k, v, backend="tensorflow").backend == "tensorflow"
    seen = []
    specs = [unknown(a) for a in (QUERY, KEY, VALUE)]
    tf.function(lambda *a: seen.append(regard.plan(*a)), input_signature=specs)(q, k, v)
    tf.function(lambda n: seen.append(regard.plan(q, k, v, mask=regard.lengths(n))))(
        tf.constant([3, 4])
    )
    assert all("tf.numpy_function" in str(plan) for plan in seen)
    assert "(None, 4, None, 8)" in str(seen[0]) and "when the function runs" in str(seen[1])


def test_what_cannot_be_is_said():
    q, k, v = tensors(QUERY, KEY, VALUE)
    with pytest.raises(ArrayTypeError, match="query of type SparseTensor"):
        regard.attention(tf.sparse.from_dense(q), k, v)
    with pytest.raises(DtypeError, match="key of type float64"):
        regard.attention(q, tf.cast(k, tf.float64), v)
    with pytest.raises(OptionError, match="scale of type EagerTensor"):
        regard.attention(q, k, v, scale=tf.constant(1.0))
    with pytest.raises(MaskError, match="a mask of type float32"):
        regard.attention(q, k, v, mask=tf.constant(BIAS))
    specs = [unknown(a) for a in (QUERY, KEY, VALUE)]

    def refused(error, match, call, *specs):
        with pytest.raises(error, match=match):
            tf.function(call, input_signature=specs, autograph=False).get_concrete_function()

    refused(ShapeError, "known sizes", lambda q, k: regard.weights(q, k) @ k, *specs[:2])
    some = tf.TensorSpec(None, tf.float32)
    refused(ShapeError, "of one known rank", lambda q: regard.attention(q, q, q), some)
    refused(
        BackendError,
        "sizes are not known",
        lambda *a: regard.attention(*a, backend="tensorflow"),
        *specs,
    )
    refused(
        MaskError,
        "6 queries and 9 keys",
        lambda q: regard.attention(q, k, v, mask=regard.causal()),
        tf.TensorSpec(QUERY.shape),
    )
    late = tf.function(lambda *a: regard.attention(*a, mask=regard.causal()), input_signature=specs)
    with pytest.raises(tf.errors.OpError, match="6 queries and 9 keys"):
        late(q, k, v)
    with tf.GradientTape() as outer, tf.GradientTape() as inner:
        outer.watch(q)
        inner.watch(q)
        y = regard.attention(q, k, v, dropout_p=0.5, dropout_seed=1)
        with pytest.raises(BackendError, match="dropout_p"):
            outer.gradient(inner.gradient(y, q), q)
