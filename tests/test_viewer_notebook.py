"""What operators and recordings show of themselves in a notebook."""

from __future__ import annotations

import base64
import json
import re
import zlib
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch

import regard
from attending import Attend, Block
from pages import small_record
from regard.recording import watch
from regard.viewer import notebook


def pixels_of(data: bytes) -> Any:
    """Those of our own encoder's PNG files."""
    columns, rows = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    size = int.from_bytes(data[33:37], "big")
    lines = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8)
    return lines.reshape(rows, 1 + 3 * columns)[:, 1:].reshape(rows, columns, 3)


def header_of(bundle: dict[str, str]) -> dict[str, Any]:
    """The header of the page in a bundle's frame."""
    content = re.search(r"id=&quot;header&quot;&gt;(.*?)&lt;/script", bundle["text/html"])
    assert content
    return json.loads(content[1].replace("&quot;", '"'))


def operator(*shape: int) -> regard.AttentionWeights:
    rng = np.random.default_rng(0)
    return regard.weights(*rng.normal(size=(2, *shape)).astype("f4"), mask=regard.causal())


def test_the_picture_has_a_tile_for_each_head() -> None:
    record = small_record()
    pixels = pixels_of(notebook.picture(record))
    side = notebook.CELLS * notebook.SCALE
    step = side + notebook.GAP
    assert pixels.shape == (2 * step + notebook.GAP, 3 * step + notebook.GAP, 3)
    weights = record.calls[1].dense[2]
    query, key = np.unravel_index(weights.argmax(), weights.shape)
    row, column = ((2 * at + 1) * side // (2 * 14) for at in (query, key))
    top, left = notebook.GAP + step, notebook.GAP + 2 * step
    darkest = [int(notebook.RAMP[-1][at : at + 2], 16) for at in (1, 3, 5)]
    assert pixels[top + row, left + column].tolist() == darkest
    tile = pixels[top : top + side, left : left + side].reshape(-1, 3)
    assert (tile == darkest).all(1).sum() <= 2 * (side // 14 + 1) ** 2


def test_the_picture_has_the_colours_of_the_page() -> None:
    script = (resources.files("regard.viewer") / "assets" / "colour.js").read_text("utf-8")
    light = re.search(r"const RAMPS = {\s*light: (\[.*?\])", script)
    assert light and tuple(json.loads(light[1])) == notebook.RAMP


def test_an_operator_shows_itself() -> None:
    weights = operator(2, 3, 10, 8)
    bundle = weights._repr_mimebundle_()
    assert bundle["text/plain"] == repr(weights)
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/html"].startswith("<iframe srcdoc=")
    (call,) = header_of(bundle)["runs"][0]["calls"]
    assert (call["heads"], call["queries"], call["keys"]) == (3, 10, 10)


def test_an_operator_shows_itself_whatever_its_shape() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(1, 2, 3, 8)), rng.normal(size=(1, 2, 7, 8))
    header = header_of(regard.weights(q, k)._repr_mimebundle_())
    assert [len(text["tokens"]) for text in header["texts"]] == [7, 3]
    (call,) = header["runs"][0]["calls"]
    assert (call["query_text"], call["key_text"]) == (1, 0)
    assert set(operator(3, 10, 8)._repr_mimebundle_()) == {"text/plain", "text/html", "image/png"}
    tensor = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
    assert "image/png" in regard.weights(tensor, tensor)._repr_mimebundle_()


@pytest.mark.parametrize("shape", [(1, 8, 1024, 4), (1, 2, 0, 4)])
def test_an_operator_too_large_or_empty_shows_a_text(shape: tuple[int, ...]) -> None:
    weights = operator(*shape)
    assert weights._repr_mimebundle_() == {"text/plain": repr(weights)}


def test_weights_that_are_no_numbers_show_a_text() -> None:
    bad = np.full((1, 1, 4, 8), np.nan, "f4")
    assert set(regard.weights(bad, bad)._repr_mimebundle_()) == {"text/plain"}


def test_a_recording_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(Block(Attend()))
    with watch(model, tokens=list("abcde")) as seen, torch.no_grad():
        assert seen._repr_mimebundle_() == {"text/plain": str(seen)}
        model(torch.randn(1, 5, 8))
    bundle = seen._repr_mimebundle_()
    assert bundle["text/plain"] == str(seen)
    assert header_of(bundle)["texts"][0]["tokens"] == list("abcde")
    monkeypatch.setattr("regard.recording.record._SHOWN", 1)
    assert seen._repr_mimebundle_() == {"text/plain": f"{seen}\n(html(path) writes a page of it.)"}
