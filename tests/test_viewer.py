"""The page: what is packed is what is shown, hostile text stays text, files are whole or absent."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regard.errors import OptionError, RegardError, ShapeError
from regard.viewer import Call, Record, Text, iframe, page, write_page
from regard.viewer.packing import LogCodes, unpack
from regard.viewer.page import SCRIPTS
from regard.viewer.record import cell_edges, pool

WORDS = [
    "[CLS]", "the", "small", "cat", "saw", "the", "other", "cat", "un", "##believ", "##ably", "ran",
    ".", "[SEP]",
]  # fmt: skip
HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"'`&amp;", "<!--",
    "مرحبا", "👩‍🚀", "\x00\x07", "\u202eevil", "\u2028", "\n", "", "{{script}}", "\ud800", " ",
]  # fmt: skip


def softmax_weights(heads: int, queries: int, keys: int, seed: int = 0, sharp: float = 3) -> Any:
    scores = np.random.default_rng(seed).normal(size=(heads, queries, keys)) * sharp
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)


def small_record(words: list[str] = WORDS, layers: int = 2, heads: int = 3, **more: Any) -> Record:
    calls = [
        Call.from_weights(
            softmax_weights(heads, len(words), len(words), seed=layer),
            name=f"layer.{layer}.attention",
            layer=layer,
            kinds=["previous token", "broad", "=1+1"][:heads],
            scores={"sharpness": np.linspace(0.1, 0.9, heads) + layer},
        )
        for layer in range(layers)
    ]
    return Record("A small record", "a model", [Text.guess(words)], calls, **more)


def large_record(length: int = 700) -> Record:
    weights = softmax_weights(2, length, length, sharp=1.5)
    call = Call.from_weights(weights, name="layer.0", layer=0, kinds=["broad", "broad"])
    words = [f"w{i}" for i in range(length)]
    return Record("Large", "a model", [Text.guess(words)], [call])


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


def test_a_short_text_keeps_every_weight_almost_exactly() -> None:
    record = small_record()
    header, chunks = parts(page(record))
    for call, entry in zip(record.calls, header["calls"], strict=True):
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
    arrays = header["calls"][0]["arrays"]
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
    keys = unpack(header["calls"][0]["arrays"]["top_keys"], chunks)
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
    assert all("dense" in call["arrays"] for call in parts(text)[0]["calls"])


def test_fewer_top_keys_rather_than_a_page_of_any_size() -> None:
    header, _ = parts(page(large_record(), budget=1_000))
    assert header["calls"][0]["arrays"]["top_keys"]["shape"] == [2, 700, 1]


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
    with pytest.raises(ShapeError, match=r"lengths \(2, 1, 2\)"):
        Text(["a", "b"], [False], [True, True])


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium or google-chrome on the PATH")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update"
    )
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=flags.split())
        yield running
        running.close()


class Opened:
    """A page in a browser that may neither complain nor ask for anything."""

    def __init__(self, browser: Any, path: Path, address: str = "", **context: Any) -> None:
        self.problems: list[str] = []
        self.page = browser.new_page(viewport={"width": 1300, "height": 1000}, **context)
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", self._note_request)
        self.page.goto(path.as_uri() + address)
        self.page.wait_for_selector("#heat[data-drawn]")
        self.page.wait_for_selector("#text[data-drawn]")

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "blob:", "data:")):
            self.problems.append(request.url)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_timeout(80)

    def listed(self) -> list[tuple[int, str, float]]:
        """The list beside the text: (token number, token, weight)."""
        rows = self.page.query_selector_all("#top button")
        found = []
        for row in rows:
            place, word, number = (
                row.query_selector(f".{name}").inner_text() for name in ("place", "word", "number")
            )
            found.append((int(place), word, float(number.replace("−", "-"))))
        return found


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    opened: list[Opened] = []

    def show(record: Record, address: str = "", budget: int = 3_000_000, **context: Any) -> Opened:
        write_page(record, tmp_path / "attention.html", budget=budget)
        opened.append(Opened(browser, tmp_path / "attention.html", address, **context))
        return opened[-1]

    yield show
    for each in opened:
        each.page.close()
        assert each.problems == []


def largest(weights: Any, count: int = 12) -> list[tuple[int, float]]:
    order = np.argsort(-weights, kind="stable")[:count]
    return [(int(i), float(weights[i])) for i in order]


def assert_lists(shown: list[tuple[int, str, float]], weights: Any) -> None:
    wanted = largest(weights, len(shown))
    assert len(shown) >= 5
    np.testing.assert_allclose([w for *_, w in shown], [w for _, w in wanted], rtol=0.1, atol=5e-5)
    assert [place for place, *_ in shown[:5]] == [place for place, _ in wanted[:5]]


@pytest.mark.browser
def test_a_token_shows_what_it_reads_and_who_reads_it(open_page: Any) -> None:
    record = small_record()
    view = open_page(record, "#call=1&head=2&token=3")
    weights = record.calls[1].dense[2]
    assert view.page.inner_text("#sentence") == "cat reads, in head 1.2:"
    assert_lists(view.listed(), weights[3])
    assert view.page.inner_text("#coverage") == "Shown: all of its attention."
    view.press("r")
    assert view.page.inner_text("#sentence") == "cat is read by, in head 1.2:"
    assert_lists(view.listed(), weights[:, 3])
    view.press("r", "ArrowRight", "[")
    assert view.page.inner_text("#sentence") == "saw reads, in head 1.1:"
    assert_lists(view.listed(), record.calls[1].dense[1, 4])
    view.press("{", "Escape")
    assert view.page.inner_text("#card-title") == "Head 0.1"
    assert view.listed() == []


@pytest.mark.browser
def test_means_over_a_layer_and_over_all_heads(open_page: Any) -> None:
    record = small_record()
    view = open_page(record, "#call=1&token=3&scope=layer")
    assert_lists(view.listed(), record.calls[1].dense[:, 3].mean(0))
    view.page.click("#scope [value=model]")
    view.settle()
    everything = np.concatenate([call.dense for call in record.calls])
    assert_lists(view.listed(), everything[:, 3].mean(0))
    view.press("r")
    assert_lists(view.listed(), everything[:, :, 3].mean(0))


@pytest.mark.browser
def test_hidden_sinks_leave_rows_that_sum_to_one(open_page: Any) -> None:
    record = small_record()
    view = open_page(record, "#call=0&head=1&token=5&sinks=hide")
    weights = record.calls[0].dense[1].copy()
    weights[:, [0, len(WORDS) - 1]] = 0
    weights /= weights.sum(-1, keepdims=True)
    assert_lists(view.listed(), weights[5])
    view.press("r")
    assert_lists(view.listed(), weights[:, 5])


@pytest.mark.browser
def test_the_heat_map_tells_the_weight_under_the_pointer(open_page: Any) -> None:
    record = small_record()
    view = open_page(record, "#call=0&head=0")
    view.page.locator("#heat").scroll_into_view_if_needed()
    box = view.page.locator("#heat").bounding_box()
    # 104 and 92 pixels of margin, cells of 40 × 54 at the most: this is somewhere inside
    view.page.mouse.move(box["x"] + 104 + 130, box["y"] + 92 + 130)
    lines = view.page.inner_text("#tip").split("\n")
    match = re.fullmatch(r"token (\d+) reads token (\d+)", lines[-1])
    assert match
    query, key = int(match[1]), int(match[2])
    assert lines[0] == f"{WORDS[query]} → {WORDS[key]}"
    assert float(lines[1]) == pytest.approx(record.calls[0].dense[0, query, key], rel=0.01)


@pytest.mark.browser
def test_the_map_and_the_table_choose_heads_and_the_address_remembers(open_page: Any) -> None:
    view = open_page(small_record())
    view.page.click("#map", position={"x": 30 + 100 * 2 + 20, "y": 16 + 100 + 20})
    view.settle()
    assert view.page.inner_text("#card-title") == "Head 1.2"
    view.page.click("#table-body tr:first-child .link")
    view.settle()
    assert view.page.inner_text("#card-title") == "Head 0.0"
    view.page.click("#theme")
    view.page.click("#scale [value=log]")
    view.settle()
    background = "getComputedStyle(document.body).backgroundColor"
    before = view.page.url, view.page.evaluate(background)
    assert "theme=dark" in before[0]
    view.page.reload()
    view.page.wait_for_selector("#heat[data-drawn]")
    assert (view.page.url, view.page.evaluate(background)) == before
    assert view.page.get_attribute("#scale [value=log]", "aria-pressed") == "true"


@pytest.mark.browser
def test_kinds_and_scores_filter_and_sort(open_page: Any) -> None:
    view = open_page(small_record())
    view.page.click("#kinds button:has-text('previous token')")
    view.settle()
    assert view.page.inner_text("#table-count").startswith("2 of 6 heads")
    view.page.click("#kinds button:has-text('previous token')")
    view.page.click("#table-head button:has-text('sharpness')")
    view.settle()
    heads = view.page.locator("#table-body .link").all_inner_texts()
    assert heads == ["1.2", "1.1", "1.0", "0.2", "0.1", "0.0"]


@pytest.mark.browser
def test_long_texts_say_how_much_of_the_attention_is_shown(open_page: Any) -> None:
    record = large_record()
    view = open_page(record, "#token=40&head=0", budget=200_000)
    call = record.calls[0]
    share = round(100 * call.top_weights[0, 40].sum())
    assert f"Shown: {share} % of its attention (each query’s top 8 keys)" in view.page.inner_text(
        "#coverage"
    )
    assert [place for place, *_ in view.listed()] == call.top_keys[0, 40].tolist()
    view.press("r")
    readers = np.flatnonzero((call.top_keys[0] == 40).any(-1))
    assert {place for place, *_ in view.listed()} <= set(readers.tolist())
    assert "Each cell is 11 × 11 tokens" in view.page.inner_text("#legend-text")
    view.page.click("#measure [value=max]")
    view.settle()
    assert "the largest weight in it" in view.page.inner_text("#legend-text")
    for _ in range(6):
        view.page.click("#zoom-in")
    view.settle()
    assert "8 largest keys of each query" in view.page.inner_text("#legend-text")


@pytest.mark.browser
def test_hostile_text_is_shown_and_does_not_run(open_page: Any) -> None:
    record = small_record(HOSTILE, notes=["<script>alert(2)</script>"])
    view = open_page(record)
    shown = view.page.locator(".token").all_inner_texts()
    assert shown[:3] == HOSTILE[:3]
    assert view.page.inner_text("#notes") == "<script>alert(2)</script>"
    assert view.page.locator("img").count() == 0


@pytest.mark.browser
def test_cross_attention_reads_another_text(open_page: Any) -> None:
    source, target = Text.guess(["a", "house"], name="source"), Text.guess(["ein", "Haus", "."])
    weights = softmax_weights(2, 3, 2)
    call = Call.from_weights(weights, name="cross", layer=0, query_text=1, key_text=0)
    view = open_page(Record("t", "m", [source, target], [call]), "#token=1")
    assert view.page.inner_text("#sentence") == "Haus reads, in head 0.0:"
    assert [word for _, word, _ in view.listed()] == [
        source.tokens[i] for i, _ in largest(weights[0, 1])
    ]
    view.page.click("#t0-1")
    view.settle()
    assert view.page.inner_text("#sentence") == "house is read by, in head 0.0:"


@pytest.mark.browser
def test_exports(open_page: Any) -> None:
    view = open_page(small_record())
    with view.page.expect_download() as download:
        view.page.click("#csv")
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == '"module","layer","head","kind","sharpness"'
    assert lines[3] == '"layer.0.attention",0,2,"\'=1+1",0.9'
    for button in ("#heat-png", "#map-png"):
        with view.page.expect_download() as download:
            view.page.click(button)
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.browser
def test_a_frame_works_without_sharing_its_origin(browser: Any) -> None:
    outside = browser.new_page()
    problems: list[str] = []
    outside.on("pageerror", lambda error: problems.append(str(error)))
    outside.set_content(f"<p>notebook</p>{iframe(small_record())}{iframe(small_record())}")
    for number in range(2):
        frame = outside.frame_locator("iframe").nth(number)
        frame.locator("#heat[data-drawn]").wait_for()
    frame.locator("#theme").click()
    outside.close()
    assert problems == []
