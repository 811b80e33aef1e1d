"""The page of a comparison, in a browser."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from playwright.sync_api import expect

from gatework.study.comparison_page import write_comparison
from tests.study.browser import browser, column, points, visitor
from tests.study.synthetic_studies import BITS, recall_study, result_of, run_spec, write_study

__all__ = ["browser"]

MIXERS = ("attention", "hyena", "mamba2")
INJECTION = "<b>x</b><img src=x onerror=window.hacked=1><script>window.hacked=1</script>%{x}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("comparisons")
    study = recall_study(folder / "study", mixers=MIXERS)
    baseline = recall_study(folder / "baseline", mixers=MIXERS[1:], boost=0.7, steps=300)
    evil = [run_spec("recall", INJECTION, INJECTION, width, 0.1, 0) for width in (32, 64)]
    results = [result_of(evil[0], 0.5), result_of(evil[1], 0.5, status="failed", message=INJECTION)]
    bad = write_study(folder / "bad", evil, results, title=INJECTION)
    one = [run_spec("text", "source", "attention", 32, 0.1, seed) for seed in (0, 1)]
    low = write_study(folder / "low", one, [result_of(run, 2.0) for run in one], quality=BITS, title="t")
    high = write_study(folder / "high", one, [result_of(run, 2.5) for run in one], quality=BITS, title="t")
    other = [run_spec("recall", "elsewhere", "attention", 32, 0.1, 0)]
    nothing = write_study(folder / "other", other, [], title="t")
    return {
        "recall": write_comparison(study, baseline),
        "evil": write_comparison(bad, bad),
        "text": write_comparison(low, high),
        "nothing": write_comparison(study, nothing, folder / "nothing.html"),
    }


@pytest.fixture(scope="module")
def visit(browser, pages):
    with visitor(browser) as open_path:
        yield lambda name, **options: open_path(pages[name], **options)


def test_both_figures_and_the_table_show_every_common_cell(visit):
    page = visit("recall")
    assert page.locator("#scatter-panels .js-plotly-plot").count() == 2
    assert page.locator("#difference-panels .js-plotly-plot").count() == 2
    scatter = points(page, "scatter-panels")
    assert sum(len(trace["x"]) for trace in scatter) == 4  # two mixers at two widths
    assert [trace["name"] for trace in scatter] == ["hyena", "mamba2"]
    assert len(column(page, "mixer")) == 8
    texts = str([trace["hovertext"] for trace in points(page, "difference-panels")])
    assert "difference +0." in texts
    assert "A better" in texts
    page.close()


def test_the_table_sorts_filters_and_unfolds(visit, tmp_path):
    page = visit("recall", view="#table.verdict=A+better&table.sort=mixer")
    assert set(column(page, "verdict")) == {"A better"}
    assert column(page, "mixer") == sorted(column(page, "mixer"))
    page.locator("#table th[data-key=difference] button").click()
    differences = [float(text.split()[0]) for text in column(page, "difference")]
    assert differences == sorted(differences)
    assert set(column(page, "training_flops")) == {"2.0×"}
    page.locator("#table .unfold").first.click()
    detail = page.locator("#table .unfolded")
    for text in ("In A", "In B", "training compute", "600 in A, 300 in B", "standard deviation"):
        expect(detail).to_contain_text(text)
    with page.expect_download() as download:
        page.locator("#table-csv").click()
    assert download.value.suggested_filename == "study-against-baseline-common-cells.csv"
    download.value.save_as(tmp_path / "rows.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert [float(row["difference"]) for row in rows] == pytest.approx(differences, abs=5e-4)
    for row in rows:
        assert float(row["difference_low"]) <= float(row["difference"]) <= float(row["difference_high"])
        assert float(row["quality_a"]) - float(row["quality_b"]) == pytest.approx(float(row["difference"]))
    page.close()


def test_selections_and_legend_change_the_figures(visit):
    page = visit("recall")
    page.locator("#difference-controls select[name=width]").select_option("32")
    assert len(points(page, "difference-panels")) == 2
    page.locator("#legend button", has_text="hyena").click()
    assert len(points(page, "difference-panels")) == 1
    assert [trace["name"] for trace in points(page, "scatter-panels")] == ["mamba2"]
    assert set(column(page, "mixer")) == {"mamba2"}
    page.locator("#difference-controls select[name=setting]").select_option("N=64, 4 pairs")
    assert page.locator("#difference-panels .js-plotly-plot").count() == 1
    assert page.url.split("#")[1] == "hide=hyena&difference.setting=N%3D64%2C+4+pairs&difference.width=32"
    page.close()


def test_lower_is_better_puts_the_gain_on_top(visit):
    page = visit("text", width=390)
    assert points(page, "difference-panels")[0]["x"] == pytest.approx([-0.5])
    assert column(page, "verdict") == ["A better"]
    page.close()


def test_without_common_cells_the_page_says_so(visit):
    page = visit("nothing", width=390, scheme="dark")
    expect(page.locator("#table-count")).to_have_text("0 of 0 common cells")
    expect(page.locator(".answer")).to_contain_text("nothing to compare")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_names_from_files_do_nothing(visit):
    page = visit("evil", width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#table .unfold").first.click()
    point = page.locator("#scatter-panels .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    expect(page.locator("#scatter-panels .hoverlayer")).to_contain_text("<b>x</b><img src=x")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0
    expect(page.locator("h1")).to_have_text(INJECTION)
    page.close()
