"""Records to make pages of, and pages as a browser shows them."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regard.viewer import Call, Record, Text
from regard.viewer.packing import LogCodes

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


def changed_record() -> Record:
    """The small record with another last layer, of a text with another word."""
    record = small_record([*WORDS[:3], "dog", *WORDS[4:]])
    weights = softmax_weights(3, len(WORDS), len(WORDS), seed=7)
    last = Call.from_weights(
        weights,
        name="layer.1.attention",
        layer=1,
        kinds=record.calls[1].kinds,
        scores={"sharpness": np.array([1.3, 1.3, 1.3])},
    )
    return replace(record, title="Changed", calls=[record.calls[0], last])


def large_record(length: int = 700, seed: int = 0) -> Record:
    weights = softmax_weights(2, length, length, seed, sharp=1.5)
    call = Call.from_weights(weights, name="layer.0", layer=0, kinds=["broad", "broad"])
    words = [f"w{i}" for i in range(length)]
    return Record("Large", "a model", [Text.guess(words)], [call])


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


def largest(weights: Any, count: int = 12) -> list[tuple[int, float]]:
    order = np.argsort(-weights, kind="stable")[:count]
    return [(int(i), float(weights[i])) for i in order]


def assert_lists(shown: list[tuple[int, str, float]], weights: Any) -> None:
    wanted = largest(weights, len(shown))
    assert len(shown) >= 5
    np.testing.assert_allclose([w for *_, w in shown], [w for _, w in wanted], rtol=0.1, atol=5e-5)
    assert [place for place, *_ in shown[:5]] == [place for place, _ in wanted[:5]]


def unpack(entry: dict[str, Any], chunks: list[str]) -> np.ndarray:
    """What the page does to show an array: (its entry, all chunks) → numbers."""
    raw = zlib.decompress(base64.b64decode(chunks[entry["chunk"]]))
    dtype = np.dtype(entry["dtype"]).newbyteorder("<")
    array = np.frombuffer(raw, dtype).reshape(entry["shape"])
    if "codes" not in entry:
        return array
    codes = {name: entry["codes"][name] for name in ("floor", "top", "last")}
    return LogCodes(**codes).table()[array]
