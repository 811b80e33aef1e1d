"""A browser without a network, and a way to open pages in it in which every complaint is an error."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

FLAGS = [
    "--headless",
    "--process-per-site",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
Visit = Callable[..., Page]
#: Both widths and both schemes in two visits; every pair of them in the slow tests.
every_look = pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "light"),
        (1440, "dark"),
        pytest.param(390, "dark", marks=pytest.mark.slow),
        pytest.param(1440, "light", marks=pytest.mark.slow),
    ],
)


def find_chromium() -> str | None:
    named = os.environ.get("GATEWORK_CHROMIUM")
    if named:
        return named if Path(named).exists() else None
    return next(filter(None, map(shutil.which, ("/usr/bin/chromium", "chromium", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        reason = "no Chromium: install Debian's chromium, or name one in GATEWORK_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def visitor(browser: Browser, **options: Any) -> Iterator[Visit]:
    """Yield a function that opens a page; what it complains of or asks the network for is an error."""
    complaints: list[str] = []
    context = browser.new_context(offline=True, **options)
    # The process of files lives as long as one of them is open, and has compiled the plotting library then.
    context.new_page().goto(Path(__file__).parent.as_uri())

    def visit(path: Path, *, width: int = 1440, scheme: str = "light", view: str = "") -> Page:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if "http" in request.url else None)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri() + view)
        expect(page.locator("#table-count")).to_have_text(re.compile(r"^\d+ of \d+ "))
        return page

    yield visit
    context.close()
    assert complaints == []


def column(page: Page, key: str) -> list[str]:
    """The texts of one column of the table, by the key of its head."""
    index = page.evaluate("key => table.columns.findIndex((column) => column.key === key)", key) + 1
    return page.locator(f"#table tbody tr[data-row] > :nth-child({index})").all_inner_texts()


def points(page: Page, plot: str) -> list[dict[str, Any]]:
    """The drawn traces of the first plot below ``plot``: x, y, name and hover text."""
    found: list[dict[str, Any]] = page.evaluate(
        "id => document.querySelector(`#${id} .plot`).data"
        ".map(({x, y, name, hovertext}) => ({x, y, name, hovertext}))",
        plot,
    )
    return found
