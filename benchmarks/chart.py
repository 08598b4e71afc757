"""A chart of ratios as SVG, from the rows that a benchmark saved."""

from __future__ import annotations

from html import escape
from typing import Any

_WIDTH, _LABEL, _NAME, _BAR, _ROW, _GAP = 930, 170, 120, 460, 15, 14
_COLOURS = {"regard": "#0b6e4f"}
_OTHER = "#9aa5b1"
_MOST = 6.0  # longer bars are cut here, and say how long they are


def bars(rows: list[dict[str, Any]], title: str) -> str:
    """One group a case, one bar a peer: its median as a multiple of Regard's."""
    parts, y = [], 46
    for row in rows:
        ours = row["regard"]["median"]
        names = [
            name for name, value in row.items() if isinstance(value, dict) and "median" in value
        ]
        names.sort(key=lambda name: row[name]["median"])
        parts.append(_text(0, y + _ROW - 4, row["case"], weight="600"))
        for name in names:
            ratio = row[name]["median"] / ours
            width = _BAR * min(ratio, _MOST) / _MOST
            colour = _COLOURS.get(name, _OTHER)
            parts.append(_text(_LABEL + _NAME - 8, y + _ROW - 4, name, anchor="end"))
            parts.append(
                f'<rect x="{_LABEL + _NAME}" y="{y + 1}" width="{width:.1f}" '
                f'height="{_ROW - 3}" rx="2" fill="{colour}"/>'
            )
            shown = f"{ratio:.2f}×" + (" (cut)" if ratio > _MOST else "")
            shown += f"  {row[name]['median']:.2f} ms"
            parts.append(_text(_LABEL + _NAME + width + 6, y + _ROW - 4, shown))
            y += _ROW
        y += _GAP
    head = _text(0, 20, title, weight="600", size=15)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 0 {_WIDTH} {y}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n'
        f'<rect x="-12" width="{_WIDTH}" height="{y}" fill="#ffffff"/>\n'
        + "\n".join([head, *parts])
        + "\n</svg>\n"
    )


def _text(
    x: float, y: float, text: str, weight: str = "400", anchor: str = "start", size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" text-anchor="{anchor}" '
        f'font-size="{size}" fill="#1f2933">{escape(text)}</text>'
    )
