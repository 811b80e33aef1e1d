"""The page of a benchmark: its figures and table, and no violation of WCAG 2.2 A and AA in either scheme."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page

from gatework.bench.attention.page import answer, render
from gatework.bench.attention.plan import make_plan
from gatework.bench.attention.result import AttentionBench
from gatework.page.frame import write_page
from tests.study.browser import browser, column, every_look, points, visitor
from tests.study.test_report_accessibility import violations

__all__ = ["browser"]

TIMES = {"dense": 1.0, "blocked": 0.25}
TEXT = '<img src=x onerror="alert(1)">'


def synthetic(*, missing: int = 0) -> AttentionBench:
    """Measurements of which everything is known: the dense engine is quadratic, the blocked one linear."""
    plan = make_plan(
        preset="quick",
        masks={"window": "SlidingWindow(N // 8, N // 8)", TEXT: "Causal()"},
        lengths=[256, 512, 1024],
        dtypes=["float32", "bfloat16"],
        passes=["forward", "both"],
        engines=["dense", "blocked", "flex", "reference"],
        threads=2,
        max_memory=2**30,
    )
    records = {}
    cells = plan.cells()
    for cell in cells[: len(cells) - missing]:
        scale = cell.problem.length / 256
        seconds = 1e-3 * TIMES.get(cell.engine, 1.0) * scale ** (1 if cell.engine == "blocked" else 2)
        timing = {"median": seconds, "low": 0.9 * seconds, "high": 1.2 * seconds, "turns": 5}
        record = {"id": cell.cell_id, "cell": cell.to_json(), "status": "measured", "reason": None}
        record |= {"density": 0.25, "time": timing, "dense": None, "peak_bytes": 2**20, "peak_reason": None}
        record |= {"baseline": dict.fromkeys(timing, 1e-3 * scale**2), "first_call": 0.01}
        record |= {
            "errors": {"output": 1e-7},
            "tolerance": 2e-5,
            "environment": {"torch": "2", "numba": None},
        }
        if cell.engine == "flex":
            record |= {"status": "refused", "reason": f"compiles nothing {TEXT}"}
        if cell.engine == "reference":
            record |= {"status": "wrong", "reason": "output is off by 1", "errors": {"output": None}}
        records[cell.cell_id] = record
    return AttentionBench(plan, records, command=f"gatework bench attention --mask '{TEXT}'")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "report.html"
    write_page(path, render(synthetic()))
    return path


@pytest.fixture(scope="module")
def visit(browser):
    with visitor(browser) as open_path:
        yield open_path


@pytest.fixture(scope="module")
def page(visit, path) -> Page:
    return visit(path)


@every_look
def test_nobody_is_kept_out(visit, path, scheme, width):
    page = visit(path, scheme=scheme, width=width)
    for row in page.locator("#table .unfold").all()[:3]:
        row.click()
    page.locator("#legend button").last.click()
    assert page.locator("#table .unfolded").count() == 3
    # Wherever a list is scrolled to, some row is half under its head; not at the start.
    page.evaluate("document.querySelector('.tall').scrollTop = 0; scrollTo(0, 0)")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_the_share_of_the_ideal_is_drawn(page):
    traces = {trace["name"]: trace for trace in points(page, "share-panels")}
    # 1024 tokens: the baseline takes 16 ms, blocked 1 ms, and a quarter of the pairs is allowed.
    assert traces["blocked"]["x"] == pytest.approx([400.0, 400.0])
    assert traces["dense"]["x"] == pytest.approx([25.0, 25.0])
    assert traces["flex"]["x"] == []
    assert "<img" not in " ".join(text for trace in traces.values() for text in trace.get("hovertext") or [])


def test_time_against_length_has_the_baseline_and_the_ideal(page):
    traces = {trace["name"]: trace for trace in points(page, "length-panels")}
    assert traces["no mask"]["y"] == pytest.approx([1e-3, 4e-3, 16e-3])
    assert traces["ideal"]["y"] == pytest.approx([0.25e-3, 1e-3, 4e-3])
    assert traces["blocked"]["x"] == [256, 512, 1024]
    assert traces["blocked"]["y"] == pytest.approx([0.25e-3, 0.5e-3, 1e-3])
    assert page.evaluate("document.querySelector('#length-panels .plot').layout.xaxis.type") == "log"


def test_figures_and_table_can_be_filtered(visit, path):
    page = visit(path, view="#length.measure=peak_bytes&length.mask=window&table.dtype=bfloat16&hide=dense")
    assert page.locator("#length-panels figure").count() == 1
    names = {trace["name"] for trace in points(page, "length-panels")}
    assert names == {"blocked", "flex", "reference"}
    assert set(column(page, "dtype")) == {"bfloat16"}
    assert "dense" not in "".join(column(page, "engine"))
    page.locator("#table-controls select[name=engine]").select_option("blocked")
    page.locator("#table-controls select[name=mask]").select_option("window")
    assert len(column(page, "engine")) == 3 * 2
    assert set(column(page, "growth")) == {"1.00"}
    page.close()


def test_refused_and_wrong_cells_are_rows_with_their_reason(visit, path):
    page = visit(path, view="#table.status=wrong")
    assert set(column(page, "status")) == {"WRONG"}
    assert set(column(page, "seconds")) == {"–"}
    page.locator("#table .unfold").first.click()
    assert "output is off by 1" in page.locator("#table .unfolded").first.inner_text()
    page.locator("#table-controls select[name=status]").select_option("refused")
    page.locator("#table .unfold").first.click()
    assert TEXT in page.locator("#table .unfolded").first.inner_text()
    assert page.locator("img").count() == 0
    page.close()


def test_rows_are_saved_with_every_number(page):
    text = page.evaluate("csvText(rowsShown())")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(synthetic().rows)
    blocked = next(row for row in rows if row["engine"] == "blocked" and row["length"] == "1024")
    assert float(blocked["share_of_ideal"]) == 4.0
    assert blocked["expression"] in ("Causal()", "SlidingWindow(N // 8, N // 8)")


def test_the_answer_begins_with_what_is_wrong():
    sentences = answer(synthetic(missing=1))
    assert sentences[0] == "23 measurements gave wrong numbers (reference) and were not timed."
    assert "blocked 200%, dense 25%" in sentences[1]
    assert "16×: blocked on" in sentences[2]
    assert sentences[3] == "1 measurement is still to be measured."


def test_the_page_loads_nothing_and_runs_only_its_scripts(path):
    text = path.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline'; img-src" in policy[1]
    assert TEXT not in text


def test_a_benchmark_without_measurements_has_a_page(visit, tmp_path):
    empty = synthetic()
    write_page(tmp_path / "report.html", render(AttentionBench(empty.plan, {})))
    page = visit(tmp_path / "report.html", width=390)
    assert violations(page) == []
    assert "Nothing has been" in page.locator(".answer").inner_text() or "still to be" in page.content()
    page.close()
