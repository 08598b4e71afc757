"""A record in a notebook: the page in a frame; a picture and a text where frames are not shown."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.errors import RegardError
from regard.viewer import png
from regard.viewer.page import iframe
from regard.viewer.record import Call, Floats, Record, pool
from regard.viewer.text import Text

# the light ramp of assets/colour.js
RAMP = ("#fdfcf9", "#dbe7f2", "#a9cae3", "#6aa5d0", "#3579b5", "#1b4f8f", "#0b2a5b")
DECADES = 2.3  # below its largest cell, a head's map is drawn for so many decades
CELLS, GAP, SCALE = 24, 2, 2  # cells and pixels of one head's map
HEIGHT, BUDGET = 720, 1_000_000


def bundle(record: Record, text: str) -> dict[str, str]:
    """What `_repr_mimebundle_` gives: the page as HTML, the model's map as PNG, the text."""
    return {
        "text/plain": text,
        "text/html": iframe(record, height=HEIGHT, budget=BUDGET),
        "image/png": base64.b64encode(picture(record)).decode("ascii"),
    }


def weights_bundle(weights: Floats, text: str) -> dict[str, str]:
    """The same of dense weights (H, Lq, Lk), whose positions go by numbers; of weights that are no
    numbers, only the text.
    """
    lengths = dict.fromkeys(weights.shape[-1:-3:-1])
    texts = [Text.guess([str(n) for n in range(length)], name="positions") for length in lengths]
    try:
        call = Call.from_weights(
            weights, name="weights", layer=0, query_text=list(lengths).index(weights.shape[1])
        )
        return bundle(Record("Attention weights", "", texts, [call]), text)
    except RegardError:
        return {"text/plain": text}


def picture(record: Record) -> bytes:
    """The PNG of all heads: a row per call, each head on a logarithmic scale of its own."""
    step = CELLS * SCALE + GAP
    columns = max(call.heads for call in record.calls)
    shape = (step * len(record.calls) + GAP, step * columns + GAP, 3)
    pixels = np.full(shape, 255, np.uint8)
    for row, call in enumerate(record.calls):
        for column, tile in enumerate(_tiles(call)):
            top, left = GAP + row * step, GAP + column * step
            pixels[top : top + CELLS * SCALE, left : left + CELLS * SCALE] = tile
    return png.encode(pixels)


def _tiles(call: Call) -> NDArray[np.uint8]:
    """(H, rows, columns, 3): the pooled map of each head in colours."""
    rows, columns = (min(CELLS, size) for size in call.pooled_sum.shape[1:])
    cells = pool(call.pooled_sum, (rows, columns), np.add)
    largest = np.maximum(cells.max((1, 2), keepdims=True), 1e-12)
    logs = np.log10(np.maximum(cells / largest, 10.0**-DECADES))
    colours = _ramp()[np.rint(255 * (1 + logs / DECADES)).astype(int)]
    side = CELLS * SCALE
    at = [np.arange(side) * size // side for size in (rows, columns)]
    return np.asarray(colours[:, at[0][:, None], at[1]])


def _ramp() -> NDArray[np.uint8]:
    """(256, 3) colours."""
    stops = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in RAMP])
    place = np.linspace(0, len(RAMP) - 1, 256)
    mixed: Any = [np.interp(place, np.arange(len(RAMP)), channel) for channel in stops.T]
    return np.asarray(np.rint(np.stack(mixed, -1)), np.uint8)
