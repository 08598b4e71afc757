"""The page in a browser: what it tells is what was recorded, and nothing goes outside."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pages import (
    HOSTILE,
    WORDS,
    assert_lists,
    changed_record,
    large_record,
    largest,
    small_record,
    softmax_weights,
)
from regard.viewer import Call, Record, Text, iframe, png

pytestmark = pytest.mark.browser


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


def test_hidden_sinks_leave_rows_that_sum_to_one(open_page: Any) -> None:
    record = small_record()
    view = open_page(record, "#call=0&head=1&token=5&sinks=hide")
    weights = record.calls[0].dense[1].copy()
    weights[:, [0, len(WORDS) - 1]] = 0
    weights /= weights.sum(-1, keepdims=True)
    assert_lists(view.listed(), weights[5])
    view.press("r")
    assert_lists(view.listed(), weights[:, 5])


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


def kind_colours(view: Any) -> dict[str, str]:
    """The colour of each kind's dot, by the kind's name."""
    chips = view.page.query_selector_all("#kinds button")
    return {
        chip.inner_text().rsplit(" ", 1)[0]: chip.query_selector("i").evaluate(
            "dot => dot.style.background"
        )
        for chip in chips
    }


def test_a_kind_has_the_same_colour_on_every_page(open_page: Any) -> None:
    kinds = ["previous token", "next token", "itself", "induction"]
    often, seldom = (
        replace(
            small_record(),
            kinds=kinds,
            calls=[replace(call, kinds=names) for call in small_record().calls],
        )
        for names in (["next token", "next token", "broad"], ["itself", "next token", "=1+1"])
    )
    first, second = kind_colours(open_page(often)), kind_colours(open_page(seldom))
    assert first["next token"] == second["next token"]
    assert len({*first.values(), *second.values()}) == 4
    assert set(second) == {"itself", "next token", "=1+1"}


def test_heads_that_were_kept_go_by_their_own_numbers(open_page: Any) -> None:
    record = small_record()
    kept = [replace(call, head_numbers=[3, 5, 11]) for call in record.calls]
    view = open_page(replace(record, calls=kept), "#call=1&head=2")
    assert view.page.inner_text("#card-title") == "Head 1.11"
    assert view.page.locator("#table-body .link").all_inner_texts()[:3] == ["0.3", "0.5", "0.11"]
    with view.page.expect_download() as download:
        view.page.click("#csv")
    assert '"layer.0.attention",0,11,' in Path(download.value.path()).read_text()


def test_a_score_filters_from_below_and_from_above(open_page: Any) -> None:
    view = open_page(small_record(), "#filter=sharpness&bound=0.5")
    shown = "#table-body .link"
    assert view.page.locator(shown).all_inner_texts() == ["1.0", "1.1", "1.2"]
    assert view.page.inner_text("#bound-count") == "3 of 6 heads"
    view.page.click("#side")
    view.settle()
    assert view.page.locator(shown).all_inner_texts() == ["0.0", "0.1", "0.2"]
    assert "side=most" in view.page.url


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


def test_a_picture_shows_what_a_patch_reads(open_page: Any) -> None:
    data = png.encode(np.full((20, 30, 3), 200, np.uint8))
    weights = softmax_weights(2, 8, 8)
    call = Call.from_weights(weights, name="blocks.0.attn", layer=0)
    text = Text.of_picture(data, 2, 3, after=["[REG]"])
    view = open_page(Record("t", "m", [text], [call]), "#head=1")
    image = view.page.locator(".picture img")
    assert image.evaluate("image => image.naturalWidth") == 30
    box = image.bounding_box()
    # the middle of row 1, column 2: token 1 + 1 × 3 + 2
    view.page.mouse.click(box["x"] + box["width"] * 5 / 6, box["y"] + box["height"] * 3 / 4)
    view.settle()
    assert view.page.inner_text("#sentence") == "patch 1,2 reads, in head 0.1:"
    assert_lists(view.listed(), weights[1, 6])
    patches = view.page.locator(".patch")
    shades = patches.evaluate_all("nodes => nodes.map((node) => node.style.background)")
    alphas = [float((re.findall(r"([\d.]+)\)$", shade) or ["0"])[0]) for shade in shades]
    assert np.argmax(alphas) == weights[1, 6, 1:7].argmax()
    view.page.focus("#text")
    view.press("ArrowUp")
    assert view.page.inner_text("#sentence").startswith("patch 0,2 reads")
    view.press("r")
    assert_lists(view.listed(), weights[1, :, 3])


def test_the_rollout_is_read_like_a_head(open_page: Any) -> None:
    rollout = softmax_weights(1, len(WORDS), len(WORDS), seed=9)
    record = small_record()
    calls = [Call.from_weights(rollout, name="rollout", layer=0)]
    view = open_page(replace(record, rollouts=calls), "#token=3&scope=rollout")
    assert view.page.inner_text("#sentence") == "cat reads, in the rollout through all layers:"
    assert_lists(view.listed(), rollout[0, 3])
    view.press("r")
    assert_lists(view.listed(), rollout[0, :, 3])
    without = open_page(record, "#call=1&head=0&token=3&scope=rollout")
    assert without.page.inner_text("#sentence") == "cat reads, in head 1.0:"
    assert without.page.locator("#scope [value=rollout]").is_hidden()


def drawn_links(view: Any) -> int:
    root = ElementTree.fromstring(downloaded(view, "#align-svg"))
    return len(list(root.iter("{http://www.w3.org/2000/svg}path")))


def test_links_are_the_weights_above_the_bound(open_page: Any) -> None:
    source, target = Text.guess(["a", "small", "house"], name="source"), Text.guess(["ein", "Haus"])
    weights = softmax_weights(2, 2, 3)
    call = Call.from_weights(weights, name="cross", layer=0, query_text=1, key_text=0)
    view = open_page(Record("t", "m", [source, target], [call]), "#head=1&link=0.2&token=0")
    assert drawn_links(view) == (weights[1] >= 0.2).sum()
    view.page.click("#scope [value=layer]")
    view.settle()
    assert drawn_links(view) == (weights.mean(0) >= 0.2).sum()
    view.page.locator("#align").click(position={"x": 40, "y": 26 + 21 + 10})
    view.settle()
    assert view.page.inner_text("#sentence").startswith("Haus reads, in layer 0")
    view.page.locator("#align").click(position={"x": 700, "y": 26 + 42 + 10})
    view.settle()
    assert view.page.inner_text("#sentence").startswith("house is read by")
    long = open_page(large_record(), budget=200_000)
    assert long.page.locator("#align-panel").is_hidden()


def test_two_runs_and_what_changed(open_page: Any) -> None:
    before, after = small_record(), changed_record()
    view = open_page(after, "#call=1&head=2&token=3", against=before)
    assert view.page.locator("#run button").all_inner_texts() == [
        "A small record",
        "Changed",
        "change",
    ]
    moved = after.calls[1].dense[2] - before.calls[1].dense[2]
    shown = view.listed()
    places = np.argsort(-abs(moved[3]), kind="stable")[: len(shown)]
    assert [place for place, *_ in shown[:5]] == places[:5].tolist()
    np.testing.assert_allclose([w for *_, w in shown], moved[3][places], rtol=0.1, atol=2e-4)
    # the heads that changed most come first, with what became of their scores
    order = np.argsort(-abs(after.calls[1].dense - before.calls[1].dense).sum((1, 2)))
    heads = view.page.locator("#table-body .link").all_inner_texts()
    assert heads[:3] == [f"1.{head}" for head in order]
    row = view.page.locator("#table-body tr").filter(has_text="1.2")
    assert "−0.600" in row.inner_text()
    view.page.click("#strip button:nth-child(2)")
    view.settle()
    assert "run=1" in view.page.url
    assert view.page.inner_text("#sentence") == "dog reads, in head 1.2:"
    assert_lists(view.listed(), after.calls[1].dense[2, 3])
    view.page.click("#run button:nth-child(1)")
    view.settle()
    assert view.page.inner_text("#sentence") == "cat reads, in head 1.2:"
    assert_lists(view.listed(), before.calls[1].dense[2, 3])


def test_long_runs_are_compared_by_their_maps(open_page: Any) -> None:
    first, second = large_record(), large_record(seed=5)
    view = open_page(second, "#token=40&head=0", against=first, budget=200_000)
    assert "Purple: less" in view.page.inner_text("#legend-text")
    moved = abs(second.calls[0].dense - first.calls[0].dense).sum((1, 2)) / 2 / 700
    assert view.page.locator("#card-scores .number").first.inner_text() == f"{moved[0]:.3f}"


def test_hostile_text_is_shown_and_does_not_run(open_page: Any) -> None:
    record = small_record(HOSTILE, notes=["<script>alert(2)</script>"])
    view = open_page(record)
    shown = view.page.locator(".token").all_inner_texts()
    assert shown[:3] == HOSTILE[:3]
    assert view.page.inner_text("#notes") == "<script>alert(2)</script>"
    assert view.page.locator("img").count() == 0


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


def test_exports(open_page: Any) -> None:
    view = open_page(small_record())
    with view.page.expect_download() as download:
        view.page.click("#csv")
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == '"module","layer","head","kind","sharpness"'
    assert lines[3] == '"layer.0.attention",0,2,"\'=1+1",0.9'
    for button in ("#heat-png", "#map-png"):
        assert downloaded(view, button).startswith(b"\x89PNG")


def downloaded(view: Any, button: str) -> bytes:
    with view.page.expect_download() as download:
        view.page.click(button)
    return Path(download.value.path()).read_bytes()


def test_a_head_as_svg_is_xml_with_its_words_as_text(open_page: Any) -> None:
    view = open_page(small_record(HOSTILE), "#call=1&head=2&token=4&direction=in&zoom=2,9,0,14")
    root = ElementTree.fromstring(downloaded(view, "#heat-svg"))
    space = "{http://www.w3.org/2000/svg}"
    words = [node.text for node in root.iter(f"{space}text")]
    assert "\"'`&amp;" in words and "مرحبا" in words
    assert words[-1] == "Attention shows what was read, not why."
    assert words[-2].startswith("A small record, a model, head 1.2: linear scale from 0 to ")
    bars = [node for node in root.iter(f"{space}rect") if node.get("fill") != "none"]
    assert len(bars) >= 2 + 14 + 7, "ground, received, entropy"
    parts = [node for node in root.iter(f"{space}svg") if node.get("viewBox") == "0 2 14 7"]
    assert parts[0][0].get("href").startswith("data:image/png;base64,")
    tiles = ElementTree.fromstring(downloaded(view, "#map-svg"))
    assert len(list(tiles.iter(f"{space}image"))) == 6


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
