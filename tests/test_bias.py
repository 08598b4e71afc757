"""Biases by distance: what they are, every kernel and front end with them, and their gradients."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

import regard
from conftest import ISAS
from problems import problem
from regard.bias import alibi_slopes
from regard.errors import ArrayTypeError, DtypeError, MaskError, OptionError, ShapeError
from regard.frontends import numpy as front
from regard.masks import Extent
from test_native import DTYPES, MASKS, check, check_backward

B, H, LQ, LK, D = 2, 4, 7, 11, 8
SIZES = [(1, 1), (16, 16), (5, 1), (1, 70), (33, 65), (67, 201), (330, 150)]


def arrays(dtype=np.float64, queries=LQ, keys=LK, key_heads=H):
    rng = np.random.default_rng(0)
    shapes = ((H, queries), (key_heads, keys), (key_heads, keys))
    return [rng.standard_normal((B, *shape, D)).astype(dtype) for shape in shapes]


def tensors(**sizes):
    return [torch.from_numpy(a).requires_grad_() for a in arrays(**sizes)]


def distances(queries=LQ, keys=LK, offset=0):
    return np.arange(keys) - np.arange(queries)[:, None] - offset


def by_distance(shape, dtype="float32", lead=None, seed=0, **options):
    """A problem of these (B, H, K, Lq, Lk, D, E) with a table of random numbers."""
    rng = np.random.default_rng(seed)
    prob = problem(rng, shape, dtype, **options)
    lead = (prob.extent.heads,) if lead is None else lead
    table = rng.standard_normal((*lead, 1, prob.extent.queries + prob.extent.keys - 1))
    return prob.with_distances(table.astype(prob.accumulation_dtype))


BIASES = {  # the bias of an array, and what it is as a matrix for distances
    "alibi": (
        (H,),
        lambda a, **options: regard.alibi(a, **options),
        lambda a, d: -a[:, None, None] * np.abs(d),
    ),
    "alibi of each batch element": (
        (B, H),
        lambda a, **options: regard.alibi(a, **options),
        lambda a, d: -a[..., None, None] * np.abs(d),
    ),
    "relative": (
        (H, 7),
        lambda a, **options: regard.relative_bias(a, **options),
        lambda a, d: a[:, np.clip(d, -3, 3) + 3],
    ),
    "relative, shared": (
        (1, 41),
        lambda a, **options: regard.relative_bias(a, **options),
        lambda a, d: a[:, np.clip(d, -20, 20) + 20],
    ),
}


def made(name):
    shape, make, expected = BIASES[name]
    return np.random.default_rng(1).standard_normal(shape), make, expected


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize(
    ("align", "offset"), [("upper_left", 0), ("lower_right", LK - LQ), (-3, -3), (1000, 1000)]
)
def test_what_is_added(name, align, offset):
    array, make, expected = made(name)
    q, k, v = arrays()
    matrix = expected(array, distances(offset=offset))
    bias = make(array, align=align)
    for backend in ("reference", "native"):
        found = regard.attention(q, k, v, bias=bias, backend=backend)
        np.testing.assert_allclose(found, regard.attention(q, k, v, bias=matrix), atol=1e-12)
        found = regard.scores(q, k, bias=bias, backend=backend)
        np.testing.assert_allclose(found, regard.scores(q, k, bias=matrix), atol=1e-11)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (32, 20), (16, 300), (7, 50), (4, 5)])
def test_t5s_buckets_are_hugging_faces(bidirectional, buckets, furthest):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    weight = torch.randn(buckets, H)
    bias = regard.t5_bias(weight, bidirectional=bidirectional, max_distance=furthest)
    config = t5.T5Config(
        num_heads=H,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=furthest,
        is_decoder=not bidirectional,
    )
    theirs = t5.T5Attention(config, has_relative_attention_bias=True)
    theirs.relative_attention_bias.weight.data = weight
    q = torch.zeros(1, H, 400, 1)
    torch.testing.assert_close(
        regard.scores(q, q, bias=bias), theirs.compute_bias(400, 400).detach(), rtol=0, atol=0
    )


@pytest.mark.parametrize("heads", [1, 6, 8, 12])
def test_the_slopes_are_blooms_and_mpts(heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    mpt = pytest.importorskip("transformers.models.mpt.modeling_mpt")
    q, k, v = (torch.randn(1, heads, 9, D) for _ in range(3))
    found = regard.attention(q, k, v, mask=regard.causal(), bias=regard.alibi(heads))
    theirs = bloom.build_alibi_tensor(torch.ones(1, 9), heads, torch.float32)
    expected = regard.attention(q, k, v, mask=regard.causal(), bias=theirs.view(heads, 1, 9))
    torch.testing.assert_close(found, expected)
    if heads in (1, 8):  # the others are in another order there
        theirs = mpt.build_mpt_alibi_tensor(heads, 9)
        expected = regard.attention(q, k, v, mask=regard.causal(), bias=theirs.view(heads, 1, 9))
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_says_the_same():
    q, k, v = (torch.randn(1, H, 24, D) for _ in range(3))
    slopes, weight = torch.rand(H), torch.randn(H, 9)
    mods = {
        "alibi": (regard.alibi(slopes), lambda s, b, h, i, j: s - slopes[h] * (j - i).abs()),
        "relative": (
            regard.relative_bias(weight),
            lambda s, b, h, i, j: s + weight[h, (j - i).clamp(-4, 4) + 4],
        ),
    }
    for bias, mod in mods.values():
        expected = flex_attention(q, k, v, score_mod=mod)
        torch.testing.assert_close(regard.attention(q, k, v, bias=bias), expected)


@pytest.mark.skipif(not ISAS, reason="no native core is installed")
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_at_ragged_lengths(isa, dtype):
    for lq, lk in SIZES:
        prob = by_distance((2, 2, 1, lq, lk, 24, 16), dtype)
        check(prob)
        check_backward(prob)


@pytest.mark.skipif(not ISAS, reason="no native core is installed")
@pytest.mark.parametrize("mask", MASKS)
def test_kernels_under_masks(isa, mask):
    for dtype in ("float32", "bfloat16"):
        seen = MASKS[mask](3, 4, 67, 201)
        prob = by_distance((3, 4, 4, 67, 201, 32, 24), dtype, mask=seen, seed=1)
        check(prob)
        check_backward(prob)


@pytest.mark.skipif(not ISAS, reason="no native core is installed")
@pytest.mark.parametrize("lead", [(2, 4), (2, 1), (1, 4), (1,)])
def test_kernels_with_shared_tables_and_all_else(isa, lead):
    for dtype in ("float32", "float64", "bfloat16"):
        options = {
            "softcap": 3.0,
            "dropout_p": 0.4,
            "dropout_seed": 11,
            "mask": regard.window(60, 20, 10),
        }
        if dtype != "bfloat16":
            options["sinks"] = np.random.default_rng(3).standard_normal(4).astype(dtype)
        prob = by_distance((2, 4, 2, 90, 130, 24, 16), dtype, lead, seed=2, **options)
        check_backward(prob)


@pytest.mark.skipif(not ISAS, reason="no native core is installed")
def test_long_gradients_in_several_chunks(isa):
    """Pieces of a few hundred queries, whose sums come together."""
    for dtype in ("float32", "bfloat16"):
        check_backward(by_distance((1, 1, 1, 1300, 200, 16, 16), dtype, mask=regard.causal(0)))


@pytest.mark.skipif(not ISAS, reason="no native core is installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_hidden_does_not_reach_the_gradient(isa, dtype):
    prob = by_distance((1, 2, 2, 70, 70, 16, 16), dtype, mask=regard.lengths(keys=np.array([50])))
    for array in (prob.key, prob.value):
        array[..., 50:, :] = np.nan
    check_backward(prob)


@pytest.mark.skipif(not ISAS, reason="no native core is installed")
def test_a_bias_alone_has_a_gradient_and_the_same_bits():
    q, k, v = (a.detach() for a in tensors(dtype=np.float32, queries=400, keys=300))
    weight = torch.randn(32, H, requires_grad=True)

    def gradient():
        bias = regard.t5_bias(weight, align=0)
        return torch.autograd.grad(regard.attention(q, k, v, bias=bias).square().sum(), weight)[0]

    expected, threads = gradient(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(gradient(), expected)
    finally:
        torch.set_num_threads(threads)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("name", [*BIASES, "t5"])
def test_first_and_second_derivatives(name):
    def t5(array, align):
        return regard.t5_bias(array, max_distance=6, align=align)

    given, make = (np.random.default_rng(1).random((8, H)), t5) if name == "t5" else made(name)[:2]
    array = torch.from_numpy(given)

    def attend(q, k, v, array):
        return regard.attention(q, k, v, bias=make(array, align=2), mask=regard.window(5, 3, 2))

    small = [t.detach()[:, :, :5, :2].clone().requires_grad_() for t in tensors(key_heads=2)]
    given = (*small, array.requires_grad_())
    assert torch.autograd.gradcheck(attend, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, given, fast_mode=True)


def test_offsets_of_each_batch_element():
    q, k, v = tensors()
    offsets = torch.tensor([4, 1])
    slopes, table = torch.rand(H, dtype=torch.float64), torch.randn(H, 7, dtype=torch.float64)
    weight = torch.randn(16, H, dtype=torch.float64)
    for make, array in (
        (regard.alibi, slopes),
        (regard.relative_bias, table),
        (regard.t5_bias, weight),
    ):
        found = regard.attention(q, k, v, bias=make(array, align=offsets))
        for b, offset in enumerate(offsets.tolist()):
            one = regard.attention(q[b], k[b], v[b], bias=make(array, align=offset))
            torch.testing.assert_close(found[b], one)
        numpys = regard.attention(q, k, v, bias=make(array, align=offsets.numpy()))
        torch.testing.assert_close(numpys, found)


def test_decoding_step_by_step_is_the_whole():
    q, k, v = arrays(queries=9, keys=9)
    bias, mask = regard.alibi(H), regard.causal()
    whole = regard.attention(q, k, v, bias=bias, mask=mask)
    for i in range(9):
        step = regard.attention(
            q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1],
            bias=regard.alibi(H, align="lower_right"),
        )  # fmt: skip
        np.testing.assert_allclose(step, whole[:, :, i : i + 1], atol=1e-12)


def test_layouts_and_batches():
    q, k, v = arrays(queries=LK)
    bias = regard.alibi(H)
    expected = regard.attention(q, k, v, bias=bias)
    turned = regard.attention(*(a.swapaxes(1, 2) for a in (q, k, v)), bias=bias, layout="BLHD")
    np.testing.assert_allclose(turned, expected.swapaxes(1, 2), atol=1e-14)
    np.testing.assert_allclose(regard.attention(q[0], k[0], v[0], bias=bias), expected[0])
    many = regard.attention(q[None], k[None], v[None], bias=bias)
    np.testing.assert_allclose(many[0], expected, atol=1e-14)
    none = regard.attention(q[:, :, :0], k, v, bias=regard.alibi(H, align=0))
    assert none.shape == (B, H, 0, D)
    blind = regard.attention(q, k[:, :, :0], v[:, :, :0], bias=regard.alibi(H, align=0))
    assert not blind.any()


def test_additive_scores():
    q, k, v = arrays()
    score = regard.Additive(None, None, np.random.default_rng(3).standard_normal(D))
    matrix = -alibi_slopes(H)[:, None, None] * np.abs(distances(offset=LK - LQ))
    expected = regard.attention(q, k, v, score=score, bias=matrix)
    bias = regard.alibi(H, align="lower_right")
    np.testing.assert_allclose(regard.attention(q, k, v, score=score, bias=bias), expected)


def test_the_operator_and_its_read_outs():
    q, k, v = arrays(np.float32, 40, 50)
    table = np.random.default_rng(2).standard_normal((H, 2 * 49 + 1)).astype(np.float32)
    options = {"mask": regard.causal("lower_right"), "sinks": np.ones(H, np.float32)}
    w = regard.weights(q, k, bias=regard.relative_bias(table, align=0), **options)
    other = regard.weights(q, k, bias=table[:, 49 + distances(40, 50)], **options)
    assert sum(array.size for array in w._problem.weight_arrays) < q.size + k.size + 1000
    for name in ("lse", "entropy", "received", "dense", "distance"):
        found, expected = getattr(w, name)(), getattr(other, name)()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(w.top_k(3).keys, other.top_k(3).keys)
    np.testing.assert_allclose(w.mT @ (w @ v), other.mT @ (other @ v), rtol=1e-4, atol=1e-5)
    for part, same in ((w[1, 2:], other[1, 2:]), (w.copy(), other)):
        np.testing.assert_allclose(part.dense(), same.dense(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(w)).dense(), w.dense())
    np.testing.assert_allclose(w[0, 1, 17], other[0, 1, 17], rtol=1e-4, atol=1e-6)
    y, seen = w.attend(v, entropy=True)
    np.testing.assert_array_equal(y, w @ v)
    np.testing.assert_allclose(seen.entropy, w.entropy(), rtol=1e-5)
    assert "linear in length" in str(
        regard.plan(q, k, v, bias=regard.alibi(H, align=0), backend="native")
    )


@pytest.mark.parametrize("align", [None, "tensor"])
def test_compiled_in_one_graph(align):
    q, k, v = tensors(dtype=np.float32, queries=LK)
    given = [*(torch.rand(n, H) for n in (1, 8)), torch.randn(H, 5)]
    for array in given:
        array.requires_grad_()
    offset = torch.tensor([0, 3]) if align else None

    def attend(q, k, v, slopes, weight, table):
        biases = (
            regard.alibi(slopes[0], offset),
            regard.t5_bias(weight, max_distance=6, align=offset),
            regard.relative_bias(table, offset),
        )
        return sum(regard.attention(q, k, v, bias=bias) for bias in biases)

    inputs = (q, k, v, *given)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*inputs), attend(*inputs)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_pytorchs_own_attention_knows_it():
    q, k, v = tensors()
    bias = regard.alibi(H, align=1)
    found = regard.attention(q, k, v, bias=bias, backend="torch")
    torch.testing.assert_close(found, regard.attention(q, k, v, bias=bias))


def test_watched():
    q, k, v = (t.detach().float() for t in tensors())

    class Attends(torch.nn.Module):
        def forward(self, x):
            return regard.attention(x, k, v, bias=regard.alibi(H, align="lower_right"))

    model = Attends()
    with regard.watch(model) as seen:
        model(q)
    expected = regard.weights(q, k, bias=regard.alibi(H, align="lower_right"))
    torch.testing.assert_close(seen[0].dense(), expected.dense())


def test_it_is_refused_with_what_to_do():
    q, k, v = arrays()
    with pytest.raises(OptionError, match=r"alibi\(\) for 7 queries and 11 keys"):
        regard.attention(q, k, v, bias=regard.alibi(H))
    with pytest.raises(OptionError, match=r"t5_bias\(\) for 7 queries"):
        regard.attention(q, k, v, bias=regard.t5_bias(np.ones((32, H))))
    with pytest.raises(ShapeError, match=r"slopes \(3,\)\. Wanted: \(H,\) or \(B, H\) = \(2, 4\)"):
        regard.attention(q, k, v, bias=regard.alibi([1.0, 2.0, 3.0], align=0))
    with pytest.raises(ShapeError, match=r"a table \(3, 5\)"):
        regard.attention(q, k, v, bias=regard.relative_bias(np.ones((3, 5)), align=0))
    with pytest.raises(ShapeError, match=r"a weight \(32, 3\)"):
        regard.attention(q, k, v, bias=regard.t5_bias(np.ones((32, 3)), align=0))
    with pytest.raises(ShapeError, match="an odd number of entries"):
        regard.relative_bias(np.ones((4, 6)))
    with pytest.raises(OptionError, match="max_distance=3"):
        regard.t5_bias(np.ones((32, 4)), max_distance=3)
    with pytest.raises(OptionError, match="slopes of 0 heads"):
        regard.alibi(0)
    with pytest.raises(DtypeError, match="slopes of type int64"):
        regard.alibi(np.arange(4))
    with pytest.raises(OptionError, match=r"alibi\(align='left'\)"):
        regard.alibi(4, align="left")
    for other in (regard.alibi(4), q, torch.ones(4)):
        with pytest.raises(OptionError, match=r"a sum of alibi\(array\(4,\), align=0\)"):
            regard.alibi(4, align=0) + other
    with pytest.raises(OptionError, match="a sum of two is a matrix"):
        q + regard.alibi(4)
    with pytest.raises(ArrayTypeError, match="from torch"):
        regard.attention(q, k, v, bias=regard.alibi(torch.ones(4), align=0))
    with pytest.raises(MaskError, match="along the edges of a graph"):
        regard.attention(
            q, k, v, mask=regard.graph(np.array([[0], [1]])), bias=regard.alibi(4, align=0)
        )


def test_a_table_has_the_sizes_it_says():
    bias, extent = regard.alibi(H, align=2), Extent((B,), H, LQ, LK)
    table = bias.table(front, np.ones(1), extent, "float32")
    assert table.shape == (H, 1, LQ + LK - 1) and table.dtype == np.float32
    away = np.abs(np.arange(LQ + LK - 1) - (LQ - 1) - 2)
    np.testing.assert_allclose(table[0, 0], -away * 2.0**-2)
