"""Bad input is refused with what was given, what was wanted and what to do."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import regard
from problems import arrays
from regard import Additive, Bilinear, errors

A = np.ones(8, np.float32)
Q, K, V = arrays(np.random.default_rng(0), (2, 4, 2, 5, 7, 8, 6))

REFUSED = {
    "rank": (
        lambda: regard.attention(Q[0, 0], K[0, 0], V[0, 0]),
        errors.ShapeError,
        r"query \(5, 8\), key \(7, 8\), value \(7, 6\).*\(B, heads, length, size\).*query\[None\]",
    ),
    "ranks": (
        lambda: regard.attention(Q, K[0], V),
        errors.ShapeError,
        "the same number of dimensions",
    ),
    "order of bytes": (
        lambda: regard.attention(Q, K.astype(">f4"), V),
        errors.DtypeError,
        r"key of type >f4.*this machine's order.*newbyteorder",
    ),
    "scale of two numbers": (
        lambda: regard.attention(Q, K, V, scale=np.ones(2)),
        errors.OptionError,
        "scale of type ndarray.*a plain number",
    ),
    "scale beyond numbers": (
        lambda: regard.attention(Q, K, V, scale=10**400),
        errors.OptionError,
        "scale of type int.*a plain number",
    ),
    "dropout as text": (
        lambda: regard.attention(Q, K, V, dropout_p="0.1", dropout_seed=1),
        errors.OptionError,
        "dropout_p of type str.*a plain number",
    ),
    "layout as an array": (
        lambda: regard.attention(Q, K, V, layout=np.ones(2)),
        errors.OptionError,
        "layout=.*BHLD",
    ),
    "backend as an array": (
        lambda: regard.attention(Q, K, V, backend=np.ones(2)),
        errors.BackendError,
        "backend=.*native or reference",
    ),
    "several seeds": (
        lambda: regard.attention(Q, K, V, dropout_p=0.1, dropout_seed=np.arange(2)),
        errors.OptionError,
        "dropout_seed=.*an integer",
    ),
    "half a seed": (
        lambda: regard.attention(Q, K, V, dropout_p=0.1, dropout_seed=np.float32(0.5)),
        errors.OptionError,
        "dropout_seed=.*an integer",
    ),
    "furthest distance": (
        lambda: regard.t5_bias(np.ones((8, 4), "f4"), max_distance="far"),
        errors.OptionError,
        "max_distance='far'.*an integer",
    ),
    "tables and offsets for each": (
        lambda: regard.attention(
            Q, K, V, bias=regard.relative_bias(np.ones((2, 4, 5), "f4"), align=[0, 1])
        ),
        errors.OptionError,
        "a table and an align for each batch element.*shared",
    ),
    "head sizes": (
        lambda: regard.weights(Q, K[..., :5]),
        errors.ShapeError,
        r"query \(2, 4, 5, 8\), key \(2, 2, 7, 5\).*8 is not 5.*Bilinear\(W\).*\(8, 5\).*project",
    ),
    "score": (
        lambda: regard.attention(Q, K, V, score="cosine"),
        errors.OptionError,
        r"score='cosine'.*\"dot\", regard.Bilinear\(W\) or regard.Additive",
    ),
    "bilinear weight": (
        lambda: regard.attention(Q, K[..., :5], V, score=Bilinear(np.ones((5, 8), "f4"))),
        errors.ShapeError,
        r"W \(5, 8\), query \(2, 4, 5, 8\).*W \(8, 5\), or \(H, 8, 5\) with H = 4",
    ),
    "additive weight": (
        lambda: regard.weights(Q, K, score=Additive(None, np.ones((4, 8, 8), "f4"), A)),
        errors.ShapeError,
        r"Wk \(4, 8, 8\), key \(2, 2, 7, 8\).*Wk \(8, 8\), or \(K, 8, 8\) with K = 2",
    ),
    "additive without a projection": (
        lambda: regard.scores(Q, K[..., :5], score=Additive(None, None, A)),
        errors.ShapeError,
        r"key \(2, 2, 7, 5\) without Wk, v \(8,\).*v's size, 8.*pass a Wk of \(5, 8\)",
    ),
    "vector": (
        lambda: regard.attention(Q, K, V, score=Additive(None, None, np.ones((3, 8), "f4"))),
        errors.ShapeError,
        r"v \(3, 8\).*\(A,\), or \(H, A\) with H = 4",
    ),
    "type of a weight": (
        lambda: regard.attention(Q, K, V, score=Bilinear(np.ones((8, 8)))),
        errors.DtypeError,
        "W of type float64, query of type float32.*one element type",
    ),
    "type of the vector": (
        lambda: regard.attention(Q, K, V, score=Additive(None, None, A.astype("f8"))),
        errors.DtypeError,
        "v of type float64, query of type float32",
    ),
    "framework of a weight": (
        lambda: regard.plan(Q, K, V, score=Bilinear(torch.ones(8, 8))),
        errors.ArrayTypeError,
        "different frameworks: value from numpy, W from torch",
    ),
    "activation": (
        lambda: Additive(None, None, A, "relu"),
        errors.OptionError,
        "activation='relu'.*tanh.*leaky_relu",
    ),
    "negative slope": (
        lambda: Additive(None, None, A, "leaky_relu", negative_slope=-1),
        errors.OptionError,
        "negative_slope=-1.*0 or more",
    ),
    "batch": (lambda: regard.attention(Q, K[:1], V), errors.ShapeError, "same batch.*expand"),
    "groups": (
        lambda: regard.attention(Q[:, :3], K, V),
        errors.ShapeError,
        "3 is not a multiple of 2",
    ),
    "value length": (lambda: regard.attention(Q, K, V[..., :6, :]), errors.ShapeError, "each key"),
    "value heads": (
        lambda: regard.attention(Q, K, V[:, [0, 1, 0]]),
        errors.ShapeError,
        "2 heads, as the keys, or of 4",
    ),
    "bias": (
        lambda: regard.attention(Q, K, V, bias=np.zeros((5, 6), np.float32)),
        errors.ShapeError,
        r"bias of shape \(5, 6\).*\(B, H, Lq, Lk\) = \(2, 4, 5, 7\)",
    ),
    "sinks": (
        lambda: regard.attention(Q, K, V, sinks=np.zeros(2, np.float32)),
        errors.ShapeError,
        r"sinks of shape \(2,\).*\(H,\) = \(4,\)",
    ),
    "integers": (
        lambda: regard.attention(Q.astype(int), K.astype(int), V.astype(int)),
        errors.DtypeError,
        "query of type int64.*float16 or bfloat16 or float32 or float64.*convert",
    ),
    "mixed types": (
        lambda: regard.attention(Q, K.astype(np.float64), V),
        errors.DtypeError,
        "query of type float32, key of type float64.*one element type",
    ),
    "boolean bias": (
        lambda: regard.attention(Q, K, V, bias=np.ones((5, 7), bool)),
        errors.DtypeError,
        "bias of type bool.*pass it as mask=",
    ),
    "lists": (
        lambda: regard.attention(Q.tolist(), K, V),
        errors.ArrayTypeError,
        "query of type list.*numpy.asarray",
    ),
    "frameworks": (
        lambda: regard.attention(torch.from_numpy(Q), K, V),
        errors.ArrayTypeError,
        "different frameworks: query from torch, value from numpy",
    ),
    "nothing": (
        lambda: regard.attention(Q, K, None),
        errors.ArrayTypeError,
        "value of type NoneType",
    ),
    "masked arrays": (
        lambda: regard.attention(Q, np.ma.masked_array(K, K > 0), V),
        errors.ArrayTypeError,
        r"key of type MaskedArray.*mask=",
    ),
    "sparse tensors": (
        lambda: regard.weights(torch.from_numpy(Q).to_sparse(), torch.from_numpy(K)),
        errors.ArrayTypeError,
        "query of layout torch.sparse_coo",
    ),
    "nested tensors": (
        lambda: regard.weights(
            *(torch.nested.nested_tensor([torch.ones(2, 4)], layout=torch.jagged),) * 2
        ),
        errors.ArrayTypeError,
        "nested.*regard.lengths",
    ),
    "learned scale": (
        lambda: regard.attention(Q, K, V, scale=torch.ones((), requires_grad=True)),
        errors.OptionError,
        "scale of type Tensor.*multiply the queries",
    ),
    "softcap": (lambda: regard.attention(Q, K, V, softcap="2"), errors.OptionError, "type str"),
    "seed": (
        lambda: regard.attention(Q, K, V, dropout_p=0.5, dropout_seed=1.5),
        errors.OptionError,
        "dropout_seed=1.5",
    ),
    "causal": (
        lambda: regard.attention(Q, K, V, mask=regard.causal()),
        errors.MaskError,
        "5 queries and 7 keys.*upper_left.*lower_right",
    ),
    "float mask": (
        lambda: regard.attention(Q, K, V, mask=np.zeros((5, 7))),
        errors.MaskError,
        "a mask of type float64.*bias=",
    ),
    "scale": (lambda: regard.attention(Q, K, V, scale=np.inf), errors.OptionError, "scale=inf"),
    "no cap": (lambda: regard.attention(Q, K, V, softcap=-1), errors.OptionError, "softcap=-1"),
    "dropout": (lambda: regard.attention(Q, K, V, dropout_p=1), errors.OptionError, "dropout_p=1"),
    "layout": (
        lambda: regard.attention(Q, K, V, layout="LBHD"),
        errors.OptionError,
        "layout='LBHD'.*BHLD",
    ),
    "precision": (
        lambda: regard.attention(Q, K, V, precision="medium"),
        errors.OptionError,
        "precision='medium'.*highest",
    ),
    "backend": (
        lambda: regard.attention(Q, K, V, backend="cuda"),
        errors.BackendError,
        "backend='cuda'.*native or reference, or torch",
    ),
}


MADE_OF_REFUSED = [
    (lambda: regard.causal([[1], [2, 3]]), errors.ShapeError, "lists of different lengths"),
    (lambda: regard.keys([[True], [True, False]]), errors.ShapeError, "keys.*different lengths"),
    (lambda: regard.blocks(np.eye(2, dtype=bool), 2.0), errors.OptionError, r"blocks\(size=2.0"),
    (lambda: regard.neighborhood(None, 1), errors.OptionError, "shape=None.*integers"),
    (lambda: regard.neighborhood((4, 4), 1.5), errors.OptionError, "radius=1.5.*integers"),
    (lambda: regard.documents(cu_lengths=5), errors.MaskError, r"cu_lengths=5.*\(n \+ 1,\)"),
    (lambda: regard.causal().draw(-1), errors.OptionError, "queries=-1"),
    (lambda: regard.alibi("abc"), errors.DtypeError, "numbers"),
    (lambda: regard.merge(3, [Q]), errors.OptionError, "outputs of type int.*a list"),
    (lambda: regard.merge([Q[0, 0]], [Q[0, 0, 0]]), errors.ShapeError, r"\(B, H, Lq, E\)"),
    (
        lambda: regard.merge([np.ones((1, 2, 3, 4), int)], [np.ones((1, 2, 3))]),
        errors.DtypeError,
        "outputs of type int64.*floats",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), MADE_OF_REFUSED)
def test_what_masks_biases_and_parts_are_made_of(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_no_entries_are_none():
    assert regard.weights(Q, K).entries([], []).shape == (2, 4, 0)


@pytest.mark.parametrize("place", range(4))
def test_bytes_in_the_other_order_are_refused_after_plain_calls_too(place):
    arrays = [Q, K, V, np.ones((5, 7), "f4")]
    regard.attention(*arrays[:3], bias=arrays[3])
    arrays[place] = arrays[place].astype(">f4")
    with pytest.raises(errors.DtypeError, match="order of bytes"):
        regard.attention(*arrays[:3], bias=arrays[3])


@pytest.mark.parametrize("shape", [(0, 4, 5, 8), (2, 4, 0, 8)], ids=str)
def test_masks_combine_where_there_is_nothing(shape):
    q = np.ones(shape, "f4")
    k = np.ones((shape[0], 2, 7, 8), "f4")
    for mask in (
        regard.causal(0) & regard.window(2, 2, align=0),
        regard.causal(0) | regard.prefix(2),
    ):
        assert regard.attention(q, k, k, mask=mask).shape == shape


W = regard.weights(Q, K)
READ_OUTS_REFUSED = [
    (lambda: W.distance(2.5), errors.OptionError, r"distance\(offset=2.5\)"),
    (lambda: W.distance(1 << 53), errors.OptionError, "whole number of positions"),
    (lambda: W.distance_bins("x"), errors.OptionError, "distance_bins.*'x'"),
    (lambda: W.offsets([[0, 1]]), errors.OptionError, "offsets.*whole numbers"),
    (lambda: W.threshold("x"), errors.OptionError, "threshold.*'x'"),
    (lambda: W.mass(np.full(7, 1 << 32)), errors.OptionError, "group 4294967296"),
    (lambda: W.received(groups=[1 << 33] * 5), errors.OptionError, "group 8589934592"),
    (lambda: W.received(["sum"]), errors.OptionError, "reduce"),
    (lambda: W.received(queries=[9]), errors.ShapeError, "some of 5 queries"),
    (lambda: W.received(queries=1.5), errors.OptionError, "queries=1.5.*booleans"),
    (lambda: W.received(queries=slice("a")), errors.OptionError, "a slice"),
    (lambda: W.read(top_k={"n": 3}), errors.OptionError, "top_k with 'n'.*keywords k"),
    (lambda: W.read(entropy={"n": 3}), errors.OptionError, "entropy=True"),
    (lambda: W.read(lse={"n": 3}), errors.OptionError, "lse=True"),
    (lambda: W.attend(V, top_k=0), errors.OptionError, "k=0"),
    (lambda: W.rows([[1], [2, 3]]), errors.ShapeError, "different lengths.*rows of one length"),
    (lambda: W.pooled(([1], 2)), errors.ShapeError, "different lengths"),
    (lambda: W.received(np.ones(2)), errors.OptionError, "reduce"),
]


@pytest.mark.parametrize(("call", "kind", "text"), READ_OUTS_REFUSED)
def test_read_outs_say_what_they_want(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_no_query_may_be_counted():
    assert not W.received(queries=[]).any()


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_bad_input_says_what_was_given_and_wanted(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert isinstance(caught.value, (ValueError, TypeError))
    assert isinstance(caught.value, errors.RegardError)


def test_every_error_is_also_a_value_error_or_a_type_error():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if kind is not errors.RegardError:
            assert issubclass(kind, (ValueError, TypeError)), name


def test_errors_survive_pickling():
    error = errors.ShapeError("a", "b", "c")
    again = pickle.loads(pickle.dumps(error))
    assert (
        type(again) is errors.ShapeError and str(again) == str(error) == "a. Wanted: b. To do: c."
    )


def test_a_missing_native_core_is_said_and_never_hidden(monkeypatch):
    from regard.kernels import native

    monkeypatch.setenv("REGARD_LIBRARY", "/nowhere/libregard_native.so")
    native._library.cache_clear()
    native._load.cache_clear()
    try:
        with pytest.raises(errors.BackendError, match="cannot be loaded"):
            regard.attention(Q, K, V, backend="native")
        plan = regard.plan(Q, K, V)
        assert plan.backend == "reference" and "cannot be loaded" in plan.reason
    finally:
        monkeypatch.undo()
        native._library.cache_clear()
        native._load.cache_clear()
    assert regard.plan(Q, K, V).backend == "native"


def test_the_plan_reads_well():
    text = str(regard.plan(Q, K, V, mask=regard.window(2, 0, "lower_right")))
    assert text.startswith("backend  native: the fastest for arrays in main memory")
    assert "window(left=2, right=0, align='lower_right'): 1 interval(s)" in text
    assert "42.9% of 280 pairs" in text and "linear in length" in text


def test_weights_know_no_dropout():
    for unknown in ({"dropout_p": 0.5}, {"value": V}):
        with pytest.raises(TypeError, match=r"weights\(\) got an unexpected keyword"):
            regard.weights(Q, K, **unknown)
