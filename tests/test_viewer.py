"""The page: what is packed is what is shown, hostile text stays text, files are whole or absent."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import os
import re
import struct
import threading
import zlib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pages import HOSTILE, changed_record, large_record, small_record, softmax_weights, unpack
from regard.errors import FileFormatError, OptionError, RegardError, ShapeError
from regard.viewer import Call, Picture, Record, Text, iframe, page, png, write_page
from regard.viewer.comparison import pair
from regard.viewer.packing import LogCodes
from regard.viewer.page import SCRIPTS
from regard.viewer.record import cell_edges, pool


def parts(text: str) -> tuple[dict[str, Any], list[str]]:
    """Header and chunks of a page, found as a browser would find them."""
    header = re.search(r'<script type="application/json" id="header">(.*?)</script>', text, re.S)
    assert header
    chunks = re.findall(r'<script type="application/octet-stream" id="chunk-\d+">(.*?)</scr', text)
    return json.loads(header[1]), chunks


@pytest.mark.parametrize("last", [24, 255, 65535])
def test_codes_keep_the_error_that_they_state(last: int) -> None:
    codes = LogCodes(1e-4, 1.0, last)
    values = np.concatenate([[0, 1e-9], np.geomspace(1e-4, 1, 5000)])
    back = codes.table()[codes.encode(values)]
    np.testing.assert_array_less(abs(back[2:] / values[2:] - 1), codes.error * (1 + 1e-6))
    assert codes.encode(values)[:2].tolist() == [0, 1]
    assert back[:2].tolist() == [0, 0]


def test_the_page_opens_on_a_head_that_goes_by_words() -> None:
    words = ["tide", "rises", "moon", "pulls", "tide", "[SEP]"]
    before = np.eye(6, k=-1, dtype=np.float32)
    before[0, 0] = 1
    same = np.full((6, 6), 0.1, np.float32)
    same[4, 0], same[2, 5] = 0.7, 0.9
    weights = np.stack([before, same / same.sum(-1, keepdims=True)])
    text = Text.guess(words)
    for kinds, start in (
        (["previous token", "mixed"], [0, 1, 4]),  # "moon" reads [SEP], which is no word
        (["mixed", "duplicate token"], [0, 1, 4]),
        (["mixed", "broad"], [0, 0, -1]),  # nothing but neighbours
    ):
        call = Call.from_weights(weights, name="attention", layer=0, kinds=kinds)
        assert parts(page(Record("", "", [text], [call])))[0]["start"] == start, kinds


def test_a_comparison_opens_on_what_changed_most() -> None:
    header, _ = parts(page(changed_record(), against=small_record()))
    changes = [call["scores"]["change"] for call in header["runs"][1]["calls"]]
    call, head = np.unravel_index(np.argmax(changes), np.shape(changes))
    assert header["start"][:2] == [call, head] and max(changes[0]) == 0


def test_a_short_text_keeps_every_weight_almost_exactly() -> None:
    record = small_record()
    header, chunks = parts(page(record))
    for call, entry in zip(record.calls, header["runs"][0]["calls"], strict=True):
        arrays = entry["arrays"]
        assert arrays["dense"]["codes"]["error"] < 1e-4
        dense = unpack(arrays["dense"], chunks)
        np.testing.assert_allclose(dense, call.dense, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(unpack(arrays["received"], chunks), call.received, rtol=1e-3)
        np.testing.assert_allclose(unpack(arrays["entropy"], chunks), call.entropy, rtol=1e-3)


def test_what_does_not_fit_becomes_pooled_maps_and_top_keys() -> None:
    record = large_record()
    call = record.calls[0]
    header, chunks = parts(page(record, budget=200_000))
    arrays = header["runs"][0]["calls"][0]["arrays"]
    assert "dense" not in arrays
    np.testing.assert_array_equal(unpack(arrays["top_keys"], chunks), call.top_keys)
    np.testing.assert_allclose(unpack(arrays["top_weights"], chunks), call.top_weights, rtol=0.03)
    rows = np.diff(cell_edges(call.queries, 64))[:, None]
    share = unpack(arrays["pooled_share"], chunks)
    np.testing.assert_allclose(share, call.pooled_sum / rows, rtol=0.03)
    np.testing.assert_allclose(share.sum(-1), 1, rtol=0.03)


def test_a_missing_key_is_packed_as_one_past_the_last() -> None:
    weights = np.tril(np.ones((1, 900, 900), np.float32))
    weights /= weights.sum(-1, keepdims=True)
    call = replace(Call.from_weights(weights, name="causal", layer=0), dense=None)
    record = Record("t", "m", [Text.guess(["a"] * 900)], [call])
    header, chunks = parts(page(record))
    keys = unpack(header["runs"][0]["calls"][0]["arrays"]["top_keys"], chunks)
    assert keys[0, 0].tolist() == [0] + [900] * 7


def test_a_small_model_at_400_tokens_stays_under_three_megabytes() -> None:
    words = ["word"] * 400
    # as diffuse as a trained encoder: its top 8 of 342 keys hold half of the mass
    calls = [
        Call.from_weights(softmax_weights(12, 400, 400, seed, 1.8), name=f"{seed}", layer=seed)
        for seed in range(6)
    ]
    text = page(Record("t", "m", [Text.guess(words)], calls))
    assert len(text) < 3_000_000
    assert all("dense" in call["arrays"] for call in parts(text)[0]["runs"][0]["calls"])


def test_marginals_of_very_many_heads_are_means_over_neighbours(monkeypatch: Any) -> None:
    record = large_record()
    call = record.calls[0]
    monkeypatch.setattr("regard.viewer.header.MARGINALS", 200)
    header, chunks = parts(page(record, budget=200_000))
    arrays = header["runs"][0]["calls"][0]["arrays"]
    received = unpack(arrays["received"], chunks)
    assert received.shape == unpack(arrays["entropy"], chunks).shape == (2, 100)
    np.testing.assert_allclose(received, call.received.reshape(2, 100, 7).mean(-1), rtol=1e-3)


def test_fewer_top_keys_rather_than_a_page_of_any_size() -> None:
    header, _ = parts(page(large_record(), budget=1_000))
    assert header["runs"][0]["calls"][0]["arrays"]["top_keys"]["shape"] == [2, 700, 1]


def test_hostile_text_stays_text() -> None:
    record = small_record(HOSTILE, notes=["<script>alert(2)</script>"], glossary={"broad": "</p>"})
    text = page(Record("</title>{{style}}", "<b>", record.texts, record.calls, record.notes))
    header, chunks = parts(text)
    assert header["texts"][0]["tokens"] == HOSTILE
    assert text.count("<script") == len(chunks) + 2
    assert text.count("</title>") == 1
    assert "alert(1)</script>" not in text
    assert "{{style}}" in text, "a title is not a place to fill"
    text.encode("utf-8")


def test_the_policy_lets_run_this_style_and_this_script_only() -> None:
    text = page(small_record())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; ")
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        body = text[text.rindex(f"<{tag}>") + len(tag) + 2 : text.rindex(f"</{tag}>")]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1]


def test_nothing_in_the_page_leads_outside() -> None:
    text = page(small_record())
    for harmless in ('xmlns="http://www.w3.org/2000/svg"', "url(${uri})"):  # a name; data: only
        assert harmless in text
        text = text.replace(harmless, "")
    assert not re.search(r"https?://|\bsrc=|\burl\(|@import|fetch\(|XMLHttpRequest", text)


def test_every_script_is_joined() -> None:
    folder = resources.files("regard.viewer") / "assets"
    there = {entry.name for entry in folder.iterdir() if entry.name.endswith(".js")}
    assert there == set(SCRIPTS)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "attention.html"
    write_page(small_record(), path)
    first = path.read_bytes()
    assert first.startswith(b"<!doctype html>")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_page(large_record(50), path)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["attention.html"]


def test_a_file_that_is_no_page_is_not_replaced(tmp_path: Path) -> None:
    """A link stays a link, a pipe a pipe; the longest name will do."""
    (tmp_path / "link.html").symlink_to("target.html")
    write_page(small_record(), tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "target.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    write_page(small_record(), tmp_path / ("n" * 250 + ".html"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        read: list[str] = []
        reader = threading.Thread(
            target=lambda: read.append((tmp_path / "pipe").read_text(encoding="utf-8")), daemon=True
        )
        reader.start()
        write_page(small_record(), tmp_path / "pipe")
        assert (tmp_path / "pipe").is_fifo()
        reader.join(10)
        assert read[0].startswith("<!doctype html>")


def test_a_frame_holds_the_page_as_one_attribute() -> None:
    frame = iframe(small_record(HOSTILE), height=500)
    content = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="([^"]*)" [^<>]*></iframe>', frame)
    assert content
    assert html.unescape(content[1]) == page(small_record(HOSTILE))
    assert "allow-same-origin" not in content[2]


# Machado et al. (2009), on linear RGB: how two eyes without red or green receptors see.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


def linear(colour: str) -> Any:
    """#rrggbb as linear RGB."""
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> Any:
    """CIE L*a*b*, in which a distance of 2.3 is just noticeable."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("theme", "ground"), [("light", "#fffefb"), ("dark", "#12161c")])
def test_colours_of_kinds_differ_for_colour_blind_readers_too(theme: str, ground: str) -> None:
    script = (resources.files("regard.viewer") / "assets" / "colour.js").read_text("utf-8")
    kinds = re.search(rf"const KINDS = {{.*?{theme}: \[(.*?)\]", script, re.S)
    grey = re.search(rf'const GREYS = {{.*?{theme}: "(.*?)"', script)
    assert kinds and grey
    colours = [*re.findall(r"#\w{6}", kinds[1]), grey[1]]
    assert len(colours) == 9
    for vision in VISIONS.values():
        seen = [lab(vision @ linear(colour)) for colour in colours]
        apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        assert min(apart) > 10
    luminance = [linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05 for colour in [ground, *colours]]
    against = [max(each, luminance[0]) / min(each, luminance[0]) for each in luminance[1:]]
    assert min(against) > 3, "WCAG 2.2, 1.4.11"


def test_a_png_holds_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    data = png.encode(pixels)
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR"
    assert struct.unpack(">II", data[16:24]) == (7, 5)
    size = struct.unpack(">I", data[33:37])[0]
    body = data[37 : 41 + size]
    assert struct.unpack(">I", data[41 + size : 45 + size]) == (zlib.crc32(body),)
    lines = np.frombuffer(zlib.decompress(body[4:]), np.uint8).reshape(5, 22)
    np.testing.assert_array_equal(lines[:, 1:].reshape(5, 7, 3), pixels)


def test_pictures_are_embedded_as_they_are_and_must_fit() -> None:
    data = png.encode(np.zeros((4, 6, 3), np.uint8))
    text = Text.of_picture(data, 2, 3, after=["[REG]"])
    assert text.tokens[3] == "patch 0,2" and text.special == [True, *[False] * 6, True]
    call = Call.from_weights(softmax_weights(1, 8, 8), name="n", layer=0)
    header, _ = parts(page(Record("t", "m", [text], [call])))
    picture = header["texts"][0]["picture"]
    assert base64.b64decode(picture["uri"].removeprefix("data:image/png;base64,")) == data
    assert (picture["first"], picture["end"]) == (1, 7)
    with pytest.raises(FileFormatError, match=r"b'GIF89a'.*PNG or JPEG"):
        Text.of_picture(b"GIF89a", 2, 3)
    with pytest.raises(ShapeError, match=r"patches up to token 6.*5 tokens"):
        Text(["a"] * 5, [False] * 5, [True] * 5, picture=Picture(data, 2, 3, first=1))
    with pytest.raises(ShapeError, match="0 × 3 patches"):
        Picture(data, 0, 3)


def test_records_that_differ_in_shape_are_not_compared() -> None:
    record = small_record()
    with pytest.raises(ShapeError, match="records of 2 and 1 attention calls"):
        page(replace(record, calls=record.calls[:1]), against=record)
    with pytest.raises(ShapeError, match=r"layer.0.*\(3, 14, 14\) and \(2, 14, 14\)"):
        page(small_record(heads=2), against=record)
    with pytest.raises(OptionError, match="of type int"):
        page(record, against=3)  # type: ignore[arg-type]


def test_the_change_of_a_head_is_the_attention_that_moved() -> None:
    before, after = small_record(), changed_record()
    moved = abs(after.calls[1].dense - before.calls[1].dense).sum(-1).mean(-1) / 2
    first, second = pair(before, after)
    for record in (first, second):
        np.testing.assert_allclose(record.calls[1].scores["change"], moved, rtol=1e-5)
        assert not record.calls[0].scores["change"].any()
    assert second.calls[1].query_text == 1 and first.calls[1].query_text == 0
    assert first.texts == second.texts
    assert pair(before, before)[1].texts == before.texts

    def pooled(record: Record) -> Record:
        calls = [replace(call, dense=None) for call in record.calls]
        return replace(record, calls=calls)

    bound = pair(pooled(before), pooled(after))[1]
    assert (bound.calls[1].scores["change"] <= moved + 1e-6).all()
    assert "at least that" in pair(pooled(before), pooled(after))[0].glossary["change"]


def test_pooling_puts_row_i_in_cell_i_times_cells_over_size() -> None:
    weights = softmax_weights(1, 7, 10)
    pooled = pool(weights, (3, 4), np.add)
    expected = np.zeros((1, 3, 4), np.float32)
    for i in range(7):
        for j in range(10):
            expected[0, i * 3 // 7, j * 4 // 10] += weights[0, i, j]
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)


def changed(**change: Any) -> dict[str, Any]:
    call = small_record().calls[0]
    return {name: getattr(call, name) for name in call.__dataclass_fields__} | change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"entropy": np.zeros((3, 4))},
            ShapeError,
            r"top_keys has shape \(3, 14, 8\).*\(3, 4, 'any'",
        ),
        ({"received": np.zeros(3)}, ShapeError, r"received has shape \(3,\).*\(H, Lk\)"),
        ({"dense": np.zeros((3, 14, 9))}, ShapeError, r"dense has shape \(3, 14, 9\).*\(3, 14, 14"),
        ({"kinds": ["one"]}, ShapeError, "kinds has 1 entries for 3 heads"),
        ({"head_numbers": [4]}, ShapeError, "head_numbers has 1 entries for 3.*one number per"),
        ({"scores": {"x": np.zeros(2)}}, ShapeError, r"scores\['x'\] has shape \(2,\)"),
        ({"top_keys": np.full((3, 14, 8), 14)}, OptionError, "from 14 to 14.*keys from 0 to 13"),
        ({"top_weights": np.full((3, 14, 8), 7.0)}, OptionError, "7.0.*between 0 and 1.*softmax"),
        ({"dense": np.full((3, 14, 14), np.nan)}, OptionError, "dense runs from nan"),
        ({"received": np.full((3, 14), np.inf)}, OptionError, "received is negative or not finite"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, error: type[RegardError], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        Call(**changed(**change))


def test_records_that_cannot_be_shown_are_refused() -> None:
    record = small_record()
    with pytest.raises(OptionError, match="no attention call"):
        Record("t", "m", record.texts, [])
    with pytest.raises(ShapeError, match="query side needs 14 tokens, text 0 has 2"):
        Record("t", "m", [Text.guess(["a", "b"])], record.calls)
    with pytest.raises(OptionError, match="query_text is 3"):
        Record("t", "m", record.texts, [Call(**changed(query_text=3))])
    with pytest.raises(ShapeError, match="no heads"):
        Call.from_weights(np.zeros((0, 2, 2)), name="n", layer=0)
    with pytest.raises(OptionError, match=r"of type Recording.*regard.recording.page.record"):
        page(type("Recording", (), {})())
    two_heads = Call.from_weights(softmax_weights(2, 14, 14), name="rollout", layer=0)
    with pytest.raises(ShapeError, match="rollout: 2 heads"):
        replace(record, rollouts=[two_heads])
    with pytest.raises(ShapeError, match=r"lengths \(2, 1, 2\)"):
        Text(["a", "b"], [False], [True, True])
