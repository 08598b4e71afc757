"""What the tests share: every kernel and instruction set of this machine; a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pages import Opened
from regard.kernels import native
from regard.viewer import Record, write_page

# A busy machine is no failure, and the same tree gives the same result.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

ISAS = native.isas() if native.available() is None else []
KERNELS = ["reference", *(f"native-{isa}" for isa in ISAS)]


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set of the native core in turn, the best one restored afterwards."""
    native.select_isa(request.param)
    yield request.param
    native.select_isa(ISAS[0])


@pytest.fixture(params=KERNELS)
def kernel(request):
    """The name of each backend in turn; of the native one, with each instruction set."""
    name, _, isa = request.param.partition("-")
    if isa:
        native.select_isa(isa)
    yield name
    if isa:
        native.select_isa(ISAS[0])


@pytest.fixture(scope="session")
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


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    opened: list[Opened] = []

    def show(
        record: Record,
        address: str = "",
        budget: int = 3_000_000,
        against: Record | None = None,
        **context: Any,
    ) -> Opened:
        write_page(record, tmp_path / "attention.html", budget=budget, against=against)
        opened.append(Opened(browser, tmp_path / "attention.html", address, **context))
        return opened[-1]

    yield show
    for each in opened:
        each.page.close()
        assert each.problems == []
