"""Keys and values in pages: the same as one long array, whatever the pages, and bad tables."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import regard
from conftest import ISAS
from regard.errors import BackendError, DtypeError, OptionError, ShapeError

B, H, K, D, E = 3, 8, 2, 24, 16
TYPES = {
    "float32": (np.float32, 2e-5),
    "float64": (np.float64, 1e-12),
    "float16": (np.float16, 5e-3),
}
TYPES["bfloat16"] = (ml_dtypes.bfloat16, 4e-2)


def cache(lengths, size, dtype="float32", queries=1, spare=3, sizes=(D, E)):
    """query, key_pages, value_pages, table, lengths; and keys and values in one piece.

    Pages are dealt at random; what no sequence has is NaN, and its entry of the table no page.
    """
    rng = np.random.default_rng(0)
    kind, _ = TYPES[dtype]
    most = -(-max(lengths) // size)
    used = [-(-length // size) for length in lengths]
    order = rng.permutation(sum(used) + spare)
    table = np.full((len(lengths), most + 1), -7)
    whole = [rng.standard_normal((len(lengths), K, most * size, n)).astype(kind) for n in sizes]
    pages = [np.full((len(order), K, size, n), np.nan, kind) for n in sizes]
    for b, length in enumerate(lengths):
        for n in range(used[b]):
            page = table[b, n] = order[sum(used[:b]) + n]
            part = slice(n * size, min((n + 1) * size, length))
            for to, of in zip(pages, whole, strict=True):
                to[page, :, : part.stop - part.start] = of[b, :, part]
    query = rng.standard_normal((len(lengths), H, queries, sizes[0])).astype(kind)
    return (query, *pages, table, np.array(lengths)), whole


@pytest.mark.skipif(not ISAS, reason="no native core is installed")
@pytest.mark.parametrize(
    ("dtype", "size"), [*((dtype, 64) for dtype in TYPES), ("float32", 1), ("float32", 100)]
)
def test_pages_are_one_long_array(isa, size, dtype):
    for lengths, queries in (([150, 0, 77], 1), ([1, 320, 129], 5), ([200, 200, 190], 40)):
        given, (k, v) = cache(lengths, size, dtype, queries)
        found, lse = regard.paged_attention(*given, return_lse=True)
        seen = regard.lengths(keys=given[-1])
        wide = [np.asarray(a, np.float64) for a in (given[0], k, v)]
        expected = regard.attention(*wide, mask=seen, backend="reference")
        unit = TYPES[dtype][1]
        assert found.dtype == TYPES[dtype][0]
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=unit, atol=unit)
        total = regard.weights(*wide[:2], mask=seen).lse()
        np.testing.assert_allclose(lse, total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_everything_that_goes_with_it(backend):
    given, (k, v) = cache([90, 40, 64], 32, queries=6)
    lengths = given[-1]
    sinks = np.linspace(-1, 1, H).astype(np.float32)
    options = {"softcap": 4.0, "scale": 0.4, "sinks": sinks}
    mask = regard.causal(lengths - 6) & regard.window(50, 0, lengths - 6)
    bias = regard.alibi(H, align=lengths - 6)
    found = regard.paged_attention(*given, mask=mask, bias=bias, backend=backend, **options)
    seen = mask & regard.lengths(keys=lengths)
    expected = regard.attention(given[0], k, v, mask=seen, bias=bias, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    dense = np.random.default_rng(1).random((B, 1, 6, given[3].shape[1] * 32)) < 0.6
    found = regard.paged_attention(*given, mask=dense, backend=backend)
    seen = dense[..., : k.shape[2]] & regard.lengths(keys=lengths)
    expected = regard.attention(given[0], k, v, mask=seen)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_layouts_frameworks_and_merging():
    given, (k, v) = cache([90, 40, 64], 32, queries=2)
    query, keys, values, table, lengths = (torch.from_numpy(a) for a in given)
    expected = regard.attention(
        *map(torch.from_numpy, (given[0], k, v)), mask=regard.lengths(lengths)
    )
    found = regard.paged_attention(query, keys, values, table, lengths)
    torch.testing.assert_close(found, expected)
    turned = (a.swapaxes(1, 2).contiguous() for a in (query, keys, values))
    blhd = regard.paged_attention(*turned, table.int(), lengths.int(), layout="BLHD")
    torch.testing.assert_close(blhd.swapaxes(1, 2), expected)
    compiled = torch.compile(regard.paged_attention, backend="eager")
    torch.testing.assert_close(compiled(query, keys, values, table, lengths), expected)
    # A prefix that all share, attended to once, and what each has of its own.
    shared = [torch.randn(1, K, 10, n) for n in (D, E)]
    k0, v0 = (a.expand(B, -1, -1, -1) for a in shared)
    parts = [
        (regard.attention(query, k0, v0), regard.weights(query, k0).lse()),
        regard.paged_attention(query, keys, values, table, lengths, return_lse=True),
    ]
    joined, _ = regard.merge(*zip(*parts, strict=True))
    both = [torch.cat([a, torch.from_numpy(b)], 2) for a, b in ((k0, k), (v0, v))]
    expected = regard.attention(query, *both, mask=regard.lengths(lengths + 10))
    torch.testing.assert_close(joined, expected)


def test_nothing_is_copied():
    """A page that changes is seen by the next call: there is no copy of it."""
    given, _ = cache([90], 32)
    before = regard.paged_attention(*given)
    given[2][given[3][0, 1]] += 1
    assert np.abs(regard.paged_attention(*given) - before).min() > 1e-3


def test_hidden_values_that_are_not_finite():
    given, (k, v) = cache([90, 40, 64], 32, queries=3)
    for b, length in enumerate(given[-1]):
        page, row = given[3][b, (length - 1) // 32], (length - 1) % 32
        given[2][page, :, row] = np.inf
    mask = regard.causal(given[-1] - 4)  # which no query sees
    found = regard.paged_attention(*given, mask=mask)
    expected = regard.attention(given[0], k, v, mask=mask)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_bad_tables_say_what_is_wrong():
    given, _ = cache([90, 40, 64], 32)
    query, keys, values, table, lengths = given

    def refused(error, match, **changes):
        named = dict(
            zip(("query", "key_pages", "value_pages", "table", "lengths"), given, strict=True)
        )
        with pytest.raises(error, match=match):
            regard.paged_attention(**(named | changes))

    wrong = table.copy()
    wrong[1, 1] = len(keys)
    refused(OptionError, rf"table\[1, 1\] = {len(keys)}, with lengths\[1\] = 40", table=wrong)
    wrong[1, 1] = -1
    refused(OptionError, r"table\[1, 1\] = -1", table=wrong)
    refused(ShapeError, r"lengths up to 129\. Wanted: at most 4 pages of 32", lengths=lengths + 39)
    refused(ShapeError, r"a table \(2, 4\)", table=table[:2])
    refused(ShapeError, r"lengths \(2,\)", lengths=lengths[:2])
    refused(ShapeError, r"from -1 on", lengths=lengths - 41)
    refused(DtypeError, "a table of type float64", table=table * 1.0)
    refused(DtypeError, "lengths of type float64", lengths=lengths * 1.0)
    refused(ShapeError, "of as many pages", value_pages=values[1:])
    refused(ShapeError, "at least one page", key_pages=keys[:0], value_pages=values[:0])
    refused(ShapeError, "a number of query heads", query=query[:, :7])
    refused(DtypeError, "one element type", key_pages=keys.astype(np.float64))
    refused(OptionError, "a bias of type ndarray with keys in pages", bias=np.ones(1))
    refused(OptionError, "layout='x'", layout="x")
    torches = [torch.from_numpy(a) for a in given]
    torches[0].requires_grad_()
    with pytest.raises(BackendError, match="require gradients"):
        regard.paged_attention(*torches)
    jnp = pytest.importorskip("jax.numpy")
    with pytest.raises(BackendError, match="in pages for jax arrays"):
        regard.paged_attention(*map(jnp.asarray, given))


def test_what_could_be_learned_is_read_where_nothing_is():
    arrays, _ = cache([40, 7], 32)
    query, keys, values = (torch.from_numpy(a) for a in arrays[:3])
    sinks = torch.nn.Parameter(torch.zeros(query.shape[1]))
    with torch.no_grad():
        seen = regard.paged_attention(query, keys, values, *arrays[3:], sinks=sinks)
    plain = regard.paged_attention(query, keys, values, *arrays[3:], sinks=sinks.detach())
    assert torch.equal(seen, plain)
    with pytest.raises(BackendError, match=r"no_grad"):
        regard.paged_attention(query, keys, values, *arrays[3:], sinks=sinks)
