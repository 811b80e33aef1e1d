"""The page of the simulator: figures and table, and no violation of WCAG 2.2 A and AA in either scheme."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from gatework.bench.gna import gna
from tests.study.browser import browser, column, points, visitor
from tests.study.test_report_accessibility import violations

__all__ = ["browser"]

OWN = {
    "grid": (30, 48, 80),
    "window": (18, 24, 24),
    "stride": (1, 1, 8),
    "dilation": (1, 1, 2),
    "search": True,
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gna")
    runs: dict[str, dict[str, Any]] = {
        "published": {},
        "own": OWN,
        "line": {"grid": 1024, "window": 130, "is_causal": True, "attention_share": 0.5},
        "long": {"grid": 1 << 16, "window": 256, "q_tile": 64, "kv_tile": 64},
    }
    for name, options in runs.items():
        gna(**options, output=folder / name)
    return {name: folder / name / "report.html" for name in runs}


@pytest.fixture(scope="module")
def visit(browser, paths):
    with visitor(browser) as open_path:
        yield lambda name, **options: open_path(paths[name], **options)


@pytest.fixture(scope="module")
def page(visit) -> Page:
    return visit("published")


def plots(page: Page, container: str) -> list[dict[str, Any]]:
    """What each panel of a container shows: its title and its traces."""
    found: list[dict[str, Any]] = page.evaluate(
        "id => [...document.querySelectorAll(`#${id} figure`)].map((figure) => ({"
        "title: figure.querySelector('figcaption').textContent, data: figure.querySelector('.plot').data"
        ".map(({x, y, z, name, mode, text}) => ({x, y, z, name, mode, text}))}))",
        container,
    )
    return found


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        ("published", "light", 1440),
        pytest.param("published", "dark", 390, marks=pytest.mark.slow),
        ("own", "dark", 1440),
        ("line", "light", 390),
        pytest.param("long", "dark", 390, marks=pytest.mark.slow),
    ],
)
def test_nobody_is_kept_out(visit, name, scheme, width):
    page = visit(name, scheme=scheme, width=width)
    for row in page.locator("#table .unfold").all()[:3]:
        row.click()
    if name != "long":
        page.locator("#legend button").last.click()
    assert page.locator("#table .unfolded").count() >= 1 or name == "line"
    page.evaluate("document.querySelector('.tall').scrollTop = 0; scrollTo(0, 0)")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_the_trade_off_has_every_stride_and_the_front(page):
    panels = plots(page, "trade-panels")
    assert [panel["title"] for panel in panels][1:3] == [
        "HunyuanVideo 91 % sparse 30x48x80, window 18x24x24",
        "HunyuanVideo 58 % sparse 30x48x80, window 30x40x40",
    ]
    others, front, perfect = panels[1]["data"]
    assert front["x"] == [1, 2, 8, 16, 64, 128, 1024]
    assert front["y"] == pytest.approx([900 / tiles for tiles in (275, 250, 165, 150, 99, 90, 81)])
    assert front["text"][-1] == "16x8x8"
    assert perfect["x"] == [1024]
    assert len(others["x"]) > 0
    # The paper's 1x32x8 is as fast as 1x8x8, and perfectly block-sparse as well.
    others, front, perfect = panels[2]["data"]
    assert front["text"][-1] == "1x8x8"
    assert {64, 256} <= set(perfect["x"])
    assert 256 in others["x"]


def test_the_paper_lies_on_the_diagonal(page):
    simulated, measured = plots(page, "paper-panels")
    pairs = [pair for trace in simulated["data"] for pair in zip(trace["x"], trace["y"], strict=True)]
    assert len(pairs) == 2 * 21
    assert all(theirs == pytest.approx(ours, abs=0.016) for theirs, ours in pairs)
    pairs = [pair for trace in measured["data"] for pair in zip(trace["x"], trace["y"], strict=True)]
    assert len(pairs) == 15
    assert all(theirs < ours + 0.01 for theirs, ours in pairs)


def test_tiles_visited_are_drawn(visit):
    page = visit("published", view="#tiles.row=3&tiles.where=worst")
    plane, *axes = plots(page, "tiles-panels")
    assert plane["title"].endswith("in 11 of 15 planes of tiles")
    assert [panel["title"] for panel in axes] == ["Axis 0", "Axis 1", "Axis 2"]

    def visited(panel: dict[str, Any]) -> list[int]:
        return [sum(kind > 0 for kind in row) for row in panel["data"][0]["z"]]

    # 11 * 5 * 5 key tiles: those of the busiest tile of queries, 275.
    assert sum(visited(plane)) == 25
    assert [max(visited(axis)) for axis in axes] == [11, 5, 5]
    assert axes[0]["data"][0]["x"][-1] == 30
    page.locator("#tiles-controls select[name=row]").select_option("9")
    plane, *axes = plots(page, "tiles-panels")
    assert {kind for axis in axes for row in axis["data"][0]["z"] for kind in row} == {0, 2}
    assert sum(visited(plane)) == 9
    page.locator("#tiles-controls select[name=where]").select_option("last")
    assert plots(page, "tiles-panels")[0]["title"].startswith("Queries 28 to 29 × 40 to 47 × 72 to 79")
    page.close()


def test_pictures_of_lines_and_of_dilated_classes(visit):
    page = visit("line")
    (axis,) = plots(page, "tiles-panels")
    assert [sum(kind > 0 for kind in row) for row in axis["data"][0]["z"]][:5] == [1, 2, 3, 4, 4]
    assert page.locator("#figure-paper").is_hidden()
    page.close()
    page = visit("own")
    assert plots(page, "tiles-panels")[-1]["data"][0]["x"][-1] == 40  # of 80 tokens in two classes
    page.close()
    page = visit("long")
    assert page.locator("#figure-tiles").is_hidden()
    assert page.locator("#figure-trade").is_visible()
    page.close()


def test_the_table_unfolds_filters_and_hides(visit):
    page = visit("published", view="#table.perfect=yes&table.sort=-speedup")
    assert column(page, "speedup") == ["11.11×", "10.24×", "9.17×", "2.40×", "2.29×"]
    page.locator("#table .unfold").first.click()
    text = page.locator("#table .unfolded").inner_text()
    assert "printed in the paper" in text
    assert "tiles divide window and stride" in text
    page.locator("#legend button").first.click()
    assert "10.24×" not in column(page, "speedup")
    assert len(points(page, "trade-panels")) == 0
    page.close()


def test_own_cases_are_searched_with_every_kernel(visit):
    page = visit("own", view="#table.why=the smallest stride that is perfectly block-sparse")
    answer = page.locator(".answer").inner_text()
    assert "(blackwell)" in answer
    assert "(hopper)" in answer
    assert set(column(page, "full_share")) == {"100 %"}
    assert page.locator("#table th[data-key=case]").count() == 0
    page.close()


def test_rows_are_saved_with_every_number(page):
    rows = list(csv.DictReader(io.StringIO(page.evaluate("csvText(rowsShown())"))))
    assert len(rows) == 21
    (row,) = [row for row in rows if row["stride"] == "16x8x8"]
    assert (row["worst_visited"], row["kv_tiles"], row["is_perfect"]) == ("81", "900", "yes")
    assert float(row["speedup"]) == 900 / 81
    assert row["window"] == "18x24x24"
