"""A record in, one HTML file out.

The page is assets/page.html with the style, the scripts (joined in one function), a JSON header and
the binary chunks put in. The content security policy lets run exactly that style and that script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from importlib import resources
from typing import Any

from regard._files import replacing
from regard.errors import OptionError
from regard.viewer.comparison import pair
from regard.viewer.header import header
from regard.viewer.packing import Chunks
from regard.viewer.record import Record

SCRIPTS = (
    "dom.js", "svg.js", "compare.js", "data.js", "state.js", "colour.js", "weights.js", "map.js",
    "heat.js", "zoom.js", "axes.js", "reader.js", "picture.js", "align.js", "table.js", "main.js",
)  # fmt: skip


def page(record: Record, *, against: Record | None = None, budget: int = 3_000_000) -> str:
    """The page as text.

    against: an earlier record of the same shapes, to compare with: the page then shows it, this
        one, and what changed from it to this.
    budget: about how many bytes the page may take to hold every weight. Weights are stored as
        finely as fits; if even the coarsest do not, the page draws pooled maps and reads the top
        k keys (k is then cut only if they would exceed eight times the budget). The page says
        which it is, and how exact.

    Raises: OptionError for what is no Record, ShapeError when records to compare differ in shape.
    """
    for each in (record,) if against is None else (record, against):
        if not isinstance(each, Record):
            raise OptionError(
                f"a record of type {type(each).__name__}",
                "a regard.viewer.Record",
                "of what regard.watch gives, regard.recording.page.record(seen) makes one",
            )
    chunks = Chunks()
    records = (record,) if against is None else pair(against, record)
    style, script = _asset("style.css"), _script()
    content = _safe_json(header(records, chunks, budget))
    parts = {
        "policy": _policy(style, script),
        "title": html.escape(record.title.encode("utf-8", "replace").decode()),
        "style": style,
        "script": script,
        "header": content,
        "chunks": "\n".join(
            f'<script type="application/octet-stream" id="chunk-{i}">{text}</script>'
            for i, text in enumerate(chunks.base64)
        ),
    }
    # one pass, so that nothing inside a part is taken for a place to fill
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _asset("page.html"))


def write_page(
    record: Record,
    path: str | os.PathLike[str],
    *,
    against: Record | None = None,
    budget: int = 3_000_000,
) -> None:
    """Writes `page(record)` to `path`, whole or not at all; to where it leads, if it is a link."""
    text = page(record, against=against, budget=budget)
    with replacing(path) as stream:
        stream.write(text.encode())


def iframe(
    record: Record,
    *,
    height: int = 900,
    budget: int = 3_000_000,
) -> str:
    """The page as an `<iframe srcdoc>` for a notebook: it shares neither scripts nor styles with
    what is around it.
    """
    content = html.escape(page(record, budget=budget))
    return (
        f'<iframe srcdoc="{content}" sandbox="allow-scripts allow-downloads" '
        f'title="Attention" width="100%" height="{int(height)}" style="border:0"></iframe>'
    )


def _asset(name: str) -> str:
    return (resources.files("regard.viewer") / "assets" / name).read_text(encoding="utf-8")


def _script() -> str:
    files = "\n".join(_asset(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{files}}})();\n'


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{digest(script)}'; "
        f"style-src 'sha256-{digest(style)}'; base-uri 'none'; form-action 'none'"
    )


def _safe_json(value: Any) -> str:
    """JSON that no HTML parser mistakes for markup: ASCII, with <, > and & escaped."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
