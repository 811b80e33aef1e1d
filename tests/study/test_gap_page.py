"""The page of a study on text in a browser: where its gap lies, and whether recall predicts it."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Page, expect

from gatework.study.comparison_page import write_comparison
from gatework.study.report import write_report
from tests.study.browser import browser, column, points, visitor
from tests.study.synthetic_gaps import GAPS, SHARE, companion_study, gap_study
from tests.study.synthetic_studies import recall_study, text_study

__all__ = ["browser"]

PANELS = "id => document.querySelectorAll(`#${id} .js-plotly-plot .main-svg:first-child`).length"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gap")
    full = gap_study(folder / "full")
    companion_study(full)
    widths = gap_study(folder / "widths", mixers=("attention", "hyena"), widths=(64, 128), seeds=(0,))
    plain = gap_study(folder / "plain", mixers=("attention", "hyena", "h3"), slices=False)
    companion_study(plain, mixers=("attention", "hyena", "h3"))
    return {
        "full": write_report(full),
        "widths": write_report(widths),
        "no attention": write_report(gap_study(folder / "none", mixers=("hyena", "h3"), seeds=(0,))),
        "no slices": write_report(plain),
        "bytes": write_report(text_study(folder / "bytes")),
        "recall": write_report(recall_study(folder / "recall", settings=1, mixers=("attention", "hyena"))),
        "comparison": write_comparison(widths, full),
    }


@pytest.fixture(scope="module")
def visit(browser, pages):
    with visitor(browser) as open_path:
        yield lambda name, **options: open_path(pages[name], **options)


@pytest.fixture(scope="module")
def opened(visit) -> Page:
    return visit("full")


@pytest.fixture
def page(opened) -> Page:
    opened.evaluate("() => { history.replaceState(null, '', location.href.split('#')[0]); restoreView(); }")
    return opened


def traces(page: Page, panels: str, index: int) -> list[dict]:
    """What one panel draws."""
    found: list[dict] = page.evaluate(
        "([id, index]) => document.querySelectorAll(`#${id} .plot`)[index].data.map("
        "({x, y, name, type, hovertext, marker}) => ({x, y, name, type, hovertext, symbol: marker?.symbol}))",
        [panels, index],
    )
    return found


def drawn(page: Page, panels: str, index: int) -> dict[str, dict]:
    return {trace["name"]: trace for trace in traces(page, panels, index) if trace["name"]}


@pytest.mark.parametrize(
    ("name", "gap", "prediction", "title"),
    [
        ("full", 3, 2, True),
        ("widths", 3, 0, True),
        ("no attention", 1, 0, True),
        ("no slices", 0, 1, True),
        ("bytes", 0, 0, False),
        ("recall", 0, 0, False),
    ],
)
def test_the_figures_are_there_where_there_is_something_to_draw(visit, name, gap, prediction, title):
    page = visit(name, width=390)
    assert page.evaluate(PANELS, "gap-panels") == gap
    assert page.evaluate(PANELS, "prediction-panels") == prediction
    assert (page.get_by_role("heading", name="Does recall predict the text gap?").count() == 1) == title
    expect(page.get_by_text("nothing was measured in this selection")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.scrollWidth <= 358)")
    page.close()


def test_perplexities_are_drawn_with_the_base_marked(page):
    found = drawn(page, "gap-panels", 0)
    hyena = found["hyena"]
    assert hyena["y"][0] == pytest.approx(math.exp(1.61), rel=0.01)
    assert hyena["x"][0] == pytest.approx(math.exp(2.51), rel=0.01)
    assert "perplexity on AR hits 5.0" in hyena["hovertext"][0]
    (base,) = [trace for trace in traces(page, "gap-panels", 0) if trace["symbol"] == "circle-open"]
    assert (base["x"], base["y"]) == (found["attention"]["x"], found["attention"]["y"])
    lost = [trace for trace in traces(page, "gap-panels", 0) if trace["symbol"] == "x-thin" and trace["x"]]
    assert "gated_linear_attention" in lost[0]["hovertext"][0]
    kinds = page.evaluate(
        "Object.values(document.querySelector('#gap-panels .plot').layout)"
        ".filter((part) => part?.type === 'log').length"
    )
    assert kinds == 2


def test_the_parts_of_a_gap_add_up_to_it(page):
    found = drawn(page, "gap-panels", 1)
    names = page.evaluate("document.querySelectorAll('#gap-panels .plot')[1].layout.yaxis.ticktext")
    row = names.index("long_conv")
    hits, rest = found["on AR hits"]["x"][row], found["on other tokens"]["x"][row]
    assert hits == pytest.approx(SHARE * (GAPS["long_conv"][1] - GAPS["attention"][1]))
    assert hits + rest == pytest.approx(found["long_conv"]["x"][0])
    texts = page.evaluate(
        "document.querySelectorAll('#gap-panels .plot')[1].layout.annotations.map((a) => a.text)"
    )
    assert dict(zip(names, texts, strict=True))["long_conv"] == "38%"
    assert texts.count("no gap") == 3
    assert {"base", "diverged", "100%"} < set(texts)
    assert names[0] == "gated_linear_at…"  # unknown below, the smallest gap on top
    assert names[-1] == "gated_delta_net"
    hover = found["hyena"]["hovertext"][0]
    assert "share on AR hits 100% (100% to 100%, 3 seeds); not capped, the mean is 121%" in hover
    assert "gap to attention +0.044" in hover


def test_published_shares_are_hollow_and_a_switch(page):
    found = [trace for trace in traces(page, "gap-panels", 2) if "published" in trace["name"]]
    assert len(found) == 2 * 4
    assert all(trace["symbol"].endswith("-open") for trace in found)
    assert sorted(trace["x"][0] for trace in found if "hyena" in trace["name"]) == [0.982, 1]
    assert "158 million parameters, as published" in str(found)
    toggle = page.locator("#gap-controls input[name=published]")
    toggle.focus()
    page.keyboard.press("Space")
    assert set(drawn(page, "gap-panels", 2)) == {"long_conv", "base_conv", "h3", "rwkv4", "hyena"}
    assert parse_qs(urlsplit(page.url).fragment) == {"gap.published": ["hidden"]}
    assert "Hollow symbols are published shares" in page.locator("#figure-gap .caption").first.inner_text()


def test_a_link_restores_what_is_shown_of_the_gap(visit):
    page = visit("widths", view="#gap.width=64&gap.published=hidden&hide=attention")
    assert page.locator("#gap-controls select[name=width]").input_value() == "64"
    assert not page.locator("#gap-controls input").is_checked()
    assert set(drawn(page, "gap-panels", 0)) == {"hyena"}
    narrow = drawn(page, "gap-panels", 0)["hyena"]["y"]
    page.locator("#gap-controls select[name=width]").select_option("")
    both = drawn(page, "gap-panels", 0)["hyena"]["y"]
    assert both[0] == narrow[0] > both[1]
    rows = page.evaluate("document.querySelectorAll('#gap-panels .plot')[1].layout.yaxis.ticktext")
    assert sorted(rows) == ["hyena, 128", "hyena, 64"]
    page.close()


def test_recall_is_drawn_against_both_gaps(page):
    whole, hits = (drawn(page, "prediction-panels", index) for index in (0, 1))
    assert set(whole) == set(hits) == set(GAPS) - {"gated_linear_attention"}
    assert whole["attention"]["y"] == [pytest.approx(0)]
    assert hits["h3"]["y"][0] == pytest.approx(1.91 - 0.77)
    assert whole["h3"]["x"] == hits["h3"]["x"] == [pytest.approx(0.51, abs=0.02)]
    assert "accuracy on recall" in whole["h3"]["hovertext"][0]
    section = page.locator("#figure-prediction")
    expect(section.locator(".finding")).to_contain_text("With 9 mixers, the rank correlation")
    expect(section).to_contain_text("gated_linear_attention is left out")
    page.locator("#legend button", has_text="h3").click()
    assert "h3" not in drawn(page, "prediction-panels", 0)
    assert "h3" not in drawn(page, "gap-panels", 2)


def test_how_to_get_a_recall_study_is_one_line(visit):
    page = visit("widths")
    expect(page.get_by_text("the same command with --recall '{}'")).to_have_count(1)
    assert page.locator("#figure-prediction").count() == 0
    page.close()


def test_the_answer_names_the_gap(page):
    first, second = page.locator(".answer").all_inner_texts()
    assert first.startswith("The best bits per byte")
    assert second.startswith("On text, 55% of the average gap to attention")
    assert "With 9 mixers" in second
    protocol = page.locator(".protocol").inner_text()
    assert "occurs at most 12 times in the training text" in protocol
    assert "6.4% of the test tokens" in protocol


def test_the_table_and_its_file_have_the_slices(page, tmp_path):
    assert column(page, "perplexity ar_hits")[0] == f"{math.exp(0.75 - 0.04):.3f}"
    page.locator("#table-filter").fill("h3")
    with page.expect_download() as download:
        page.locator("#table-csv").click()
    download.value.save_as(tmp_path / "rows.csv")
    rows = csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_bytes().decode(), newline=""))
    (row,) = [row for row in rows if row["seed"] == "1"]
    assert float(row["slice ar_hits"]) == pytest.approx(1.91)
    assert float(row["perplexity ar_hits"]) == pytest.approx(math.exp(1.91))
    assert (row["ar_share"], row["max_train_count"]) == (str(SHARE), "12")
    page.locator("#table .unfold").first.click()
    expect(page.locator("#table .unfolded")).to_contain_text("perplexity other")


@pytest.mark.parametrize(
    ("panels", "index", "words"),
    [
        ("gap", 1, ("on AR hits", "on other tokens", "long_conv", "38%")),
        ("prediction", 0, ("hyena", "accuracy on recall")),
    ],
)
def test_a_saved_panel_explains_itself(page, tmp_path, panels, index, words):
    figure = page.locator(f"#{panels}-panels figure").nth(index)
    with page.expect_download() as download:
        figure.get_by_role("button", name="as SVG").click()
    download.value.save_as(tmp_path / "figure.svg")
    texts = {
        text.strip() for text in ElementTree.fromstring((tmp_path / "figure.svg").read_bytes()).itertext()
    }
    assert {figure.locator("figcaption").inner_text(), *words} <= texts


def test_two_studies_on_text_compare_their_perplexities(visit):
    page = visit("comparison")
    hover = str(page.evaluate("page.pairs.map((pair) => pair.details)"))
    assert "perplexity on AR hits" in hover
    assert "perplexity on other tokens" in hover
    assert len(points(page, "scatter-panels")) > 0
    page.close()
