"""Data of tasks: files with checksums, vocabularies, batches, and the loss on them."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("tokenizers", "pooch", "sacremoses", "sacrebleu"):
    pytest.importorskip(needed)

from regard.errors import FileFormatError, OptionError  # noqa: E402
from regard.tasks import bleu, multi30k  # noqa: E402
from regard.tasks.batches import Batches, Example  # noqa: E402
from regard.tasks.configuration import as_dict, describe, from_dict  # noqa: E402
from regard.tasks.fetch import Published  # noqa: E402
from regard.tasks.pronunciation import Pronunciation, distance  # noqa: E402
from regard.tasks.smoothing import smoothed_cross_entropy  # noqa: E402
from regard.tasks.translation import Translation, TranslationSettings  # noqa: E402
from regard.tasks.vocabulary import BEGIN, END, PAD, Vocabulary  # noqa: E402
from small_tasks import SETTINGS, sentences, write_text  # noqa: E402

CONTENT = b"ein hund\nzwei hunde\n"


@pytest.fixture
def published(tmp_path):
    """A file, published by a server of our own; the folder that is served."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (folder / "text.de").write_bytes(CONTENT)
    address = f"http://127.0.0.1:{server.server_port}/text.de"
    yield Published("set/text.de", address, hashlib.sha256(CONTENT).hexdigest()), folder
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import pooch

    monkeypatch.delenv("REGARD_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache"


def test_a_file_is_fetched_once_and_kept(published, cache):
    file, folder = published
    assert file.lines() == ["ein hund", "zwei hunde"]
    (folder / "text.de").unlink()
    assert file.lines() == ["ein hund", "zwei hunde"]
    assert (cache / "regard" / "set" / "text.de").read_bytes() == CONTENT


@pytest.mark.parametrize("there", [CONTENT[:5], None])
def test_what_cannot_be_fetched_whole_is_an_error_and_leaves_nothing(there, published, cache):
    file, folder = published
    (folder / "text.de").unlink()
    if there is not None:
        (folder / "text.de").write_bytes(there)
    with pytest.raises(FileFormatError, match=r"could not be fetched.*REGARD_DATA"):
        file.read()
    assert not list(cache.rglob("*.de"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_data_may_hold_it_gzipped(packed, published, tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_DATA", str(tmp_path))
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / ("text.de.gz" if packed else "text.de")
    path.write_bytes(gzip.compress(CONTENT) if packed else CONTENT)
    assert published[0].lines() == ["ein hund", "zwei hunde"]
    path.write_bytes(path.read_bytes()[:-6])
    message = "is no whole gzip file" if packed else "is broken or another version"
    with pytest.raises(FileFormatError, match=message):
        published[0].read()
    path.unlink()
    with pytest.raises(FileFormatError, match=r"there is no set/text\.de in REGARD_DATA"):
        published[0].read()


def task(tmp_path, **given):
    return Translation(from_dict(TranslationSettings, {**SETTINGS, **given}))


def test_text_of_ones_own(tmp_path):
    paths = write_text(tmp_path, 100)
    own = task(tmp_path, **paths)
    assert len(own.pairs("train")) == 95
    assert sorted(own.pairs("train") + own.pairs("validation")) == sorted(sentences(100))
    other = tmp_path / "other.de"
    lines = paths["target"].read_text("utf-8").splitlines(keepends=True)
    other.write_text("".join(lines[:-1]), "utf-8")
    with pytest.raises(FileFormatError, match=r"has 100 lines and .*other\.de has 99"):
        task(tmp_path, source=paths["source"], target=other)
    with pytest.raises(OptionError, match="one of --source and --target"):
        task(tmp_path, source=paths["source"])
    with pytest.raises(FileFormatError, match="cannot be read: no such file"):
        task(tmp_path, source=paths["source"], target=tmp_path / "nothing")
    few = write_text(tmp_path, 10)
    few["source"] = few["source"].rename(tmp_path / "few.en")
    with pytest.raises(FileFormatError, match=r"hold 10 pairs. Wanted: 20 at least"):
        task(tmp_path, **few)
    other.write_bytes(b"\xff\xfe\n" * 100)
    with pytest.raises(FileFormatError, match="is not text in UTF-8"):
        task(tmp_path, source=few["source"], target=other)


@pytest.mark.parametrize("languages", ["en", "en-en", "en-xx", "de_en"])
def test_languages_that_are_not_there(languages, tmp_path):
    with pytest.raises(OptionError, match=f"--languages {languages}"):
        task(tmp_path, languages=languages)


def test_texts_come_back_as_they_were():
    pairs = sentences(50)
    texts = [text for pair in pairs for text in pair]
    vocabulary = Vocabulary.from_json(Vocabulary.learned(texts, 120).to_json())
    assert len(vocabulary) <= 120
    assert vocabulary.decode(vocabulary.encode(texts)) == texts
    small = Vocabulary.learned(texts, 120, lowercase=True)
    assert small.decode(small.encode(texts)) == [text.lower() for text in texts]
    assert vocabulary.decode([[BEGIN, *vocabulary.encode(texts[:1])[0], END, PAD]]) == texts[:1]
    with pytest.raises(FileFormatError, match="this is no vocabulary"):
        Vocabulary.from_json("{}")


def test_pieces_know_their_words():
    texts = [text for pair in sentences(50) for text in pair]
    vocabulary = Vocabulary.learned(texts, 60)  # so small that words are in pieces
    for text in texts[:20]:
        pieces = vocabulary.pieces(text)
        assert pieces.words == text.split()
        assert pieces.ids == vocabulary.encode([text])[0]
        for number, word in enumerate(pieces.words):
            own = [t for t, w in zip(pieces.texts, pieces.word_of, strict=True) if w == number]
            assert "".join(own).replace("▁", "") == word


def test_a_space_on_its_own_belongs_to_the_word_after_it():
    texts = [text for pair in sentences(50) for text in pair]
    pieces = Vocabulary.learned(texts, 60).pieces("A (dog.")
    assert pieces.texts[1:3] == ["▁", "<unk>"]
    assert pieces.word_of[:3] == [0, 1, 1]


def examples(count: int, seed: int = 0) -> list[Example]:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 30, (count, 2))
    return [Example([n] * int(s), [n] * int(t)) for n, (s, t) in enumerate(lengths, 4)]


def rows(batch):
    return {int(row[0]): int((row != 0).sum()) for row in batch.source}


@pytest.mark.parametrize("world", [1, 3])
def test_an_epoch_gives_every_example_once_in_batches_of_so_many_tokens(world):
    given = examples(300)
    shares = [Batches(given, 256, seed=1, rank=rank, world=world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    for _ in range(2):
        batches = [batch for share in shares for batch in share]
        seen = [number for batch in batches for number in rows(batch)]
        assert len(seen) == len(set(seen))
        assert len(seen) == 300 if world == 1 else len(seen) > 250
        for batch in batches:
            assert max(batch.source.numel(), batch.target.numel()) <= 256
            assert rows(batch) == {n: len(given[n - 4].source) for n in rows(batch)}
            assert batch.lengths.tolist() == list(rows(batch).values())
            assert (batch.target[:, 0] == BEGIN).all()
    assert len(shares[0]) == len(batches) // world
    padding = sum(int((batch.target == PAD).sum()) for batch in batches)
    assert padding < 0.05 * sum(batch.target.numel() for batch in batches)


def test_batches_go_on_from_where_they_were():
    def numbers(batches, count):
        found, stream = [], iter(batches)
        while len(found) < count:
            batch = next(stream, None)
            if batch is None:
                stream = iter(batches)
            else:
                found.append(batch.source[:, 0].tolist())
        return found

    given = examples(100)
    whole = Batches(given, 256, seed=1)
    total = numbers(whole, 3 * len(whole))
    assert total[: len(whole)] != total[len(whole) : 2 * len(whole)]
    for stop in (1, len(whole) - 1, len(whole), len(whole) + 2):
        first = Batches(given, 256, seed=1)
        begun = numbers(first, stop)
        second = Batches(given, 256, seed=1)
        second.load_state_dict(first.state_dict())
        assert begun + numbers(second, len(total) - stop) == total
    assert numbers(Batches(given, 256, seed=2), len(whole)) != total[: len(whole)]


def test_batches_that_cannot_be():
    with pytest.raises(OptionError, match="a text of 31 tokens in batches of 20"):
        Batches([Example([4] * 3, [5] * 29)], 20)
    with pytest.raises(OptionError, match="no example"):
        Batches([], 20)
    with pytest.raises(OptionError, match="1 batches for 2 processes"):
        Batches([Example([4], [5])], 20, world=2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_pytorchs(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(7, 11, requires_grad=True)
    target = torch.tensor([3, PAD, 5, 10, 1, PAD, 4])
    loss, plain, size = smoothed_cross_entropy(logits, target, smoothing, PAD)
    options = {"ignore_index": PAD}
    wanted = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, **options)
    assert size == 5
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(logits, target, **options))
    assert not plain.requires_grad
    (found,) = torch.autograd.grad(3 * loss, logits)
    (gradient,) = torch.autograd.grad(3 * wanted, logits)
    torch.testing.assert_close(found, gradient)


def test_settings_are_printed_saved_and_checked(tmp_path):
    settings = from_dict(TranslationSettings, {"width": 64, "source": "a.txt", "rate": 1})
    assert settings.source == Path("a.txt") and settings.rate == 1.0
    assert from_dict(TranslationSettings, as_dict(settings)) == settings
    assert "width" in describe(settings) and "size of the vectors" in describe(settings)
    for given, message in [
        ({"widht": 64}, "there is no setting 'widht'"),
        ({"width": "64"}, "--width is '64'. Wanted: int"),
        ({"width": True}, "--width is True"),
        ({"model": "lstm"}, "--model is 'lstm'. Wanted: one of transformer, rnn"),
        ({"width": None}, "--width is None"),
        ({"layers": 0}, "--layers is 0. Wanted: 1 or more"),
        ({"dropout": 1}, "--dropout is 1.0. Wanted: at least 0 and less than 1"),
        ({"rate": float("nan")}, "--rate is nan"),
    ]:
        with pytest.raises(OptionError, match=message):
            from_dict(TranslationSettings, given)


def test_distances():
    assert distance("abc", "abc") == 0
    assert distance("", "abc") == 3
    assert distance(["K", "AE", "T"], ["K", "AH", "T", "S"]) == 2


def test_bleu_of_a_copy_is_100_and_long_sentences_are_counted_apart():
    sources = ["a b c", "a " * 12, "a " * 25]
    texts = ["ein Hund läuft hier", "Zwei Hunde, die laufen, sind „hier“.", "er sieht den Mann's"]
    found = bleu.figures(sources, texts, texts, "de")
    assert found["bleu_13a"]["score"] == found["bleu_lowercased_tokenised"]["score"] == 100
    assert "tok:13a" in found["bleu_13a"]["signature"]
    assert "tok:none" in found["bleu_lowercased_tokenised"]["signature"]
    sizes = [(row["words"], row["sentences"]) for row in found["bleu_by_source_length"]]
    assert sizes == [("1–9", 1), ("10–14", 1), ("20 and more", 1)]
    other = [texts[1], texts[0], texts[2]]
    assert bleu.figures(sources, other, texts, "de")["bleu_13a"]["score"] < 50


data = pytest.mark.skipif("REGARD_DATA" not in os.environ, reason="needs REGARD_DATA")


@data
def test_multi30k_is_tokenised_as_its_authors_did():
    folder = Path(os.environ["REGARD_DATA"]) / "multi30k" / "data" / "task1" / "tok"
    for language in ("en", "de"):
        for split in ("test_2016_flickr", "test_2017_flickr"):
            name = f"{split}.lc.norm.tok.{language}.gz"
            wanted = gzip.decompress((folder / name).read_bytes()).decode().splitlines()
            texts = multi30k.captions(split, language)
            found = bleu.lowercased_tokenised(texts, language)
            different = sum(a != b.strip() for a, b in zip(found, wanted, strict=True))
            assert different <= 1, (language, split, different)


@data
def test_what_multi30k_does_not_have_is_named():
    assert len(multi30k.captions("test_2016_flickr", "cs")) == 1000
    with pytest.raises(
        OptionError, match=r"no test_2017_flickr in 'cs'. Wanted: one of de, en, fr"
    ):
        multi30k.captions("test_2017_flickr", "cs")


@data
def test_the_dictionary_is_split_by_words():
    own = Pronunciation(from_dict(Pronunciation.settings_type, {}))
    splits = {
        name: {word for word, _ in own.pairs(name)} for name in ("train", "validation", "test")
    }
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["validation"]
    assert 6000 < len(splits["test"]) < 6700
    assert ("h e l l o", "HH AH L OW") in {p for name in splits for p in own.pairs(name)}
    assert 60 < len(own.vocabulary) < 90
