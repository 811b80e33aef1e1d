"""The pages of a study that is not on tokens: all words are those of its task."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gatework.study.answer import answer
from gatework.study.comparison_page import write_comparison
from gatework.study.report import read_summary, write_report
from gatework.study.study import Study
from tests.study.browser import browser, column, points, visitor
from tests.study.synthetic_images import SEGMENTS, image_study

__all__ = ["browser"]

FOREIGN = re.compile(r"mixer|width|token|decod|vocab|layers|sequence|perplexity", re.IGNORECASE)
#: Everything on a page that somebody sees, hears or follows, hover texts and axes included.
SHOWN = """() => {
  const labels = [...document.querySelectorAll("[aria-label], [title], [placeholder]")].flatMap((node) =>
    ["aria-label", "title", "placeholder"].map((name) => node.getAttribute(name) ?? ""));
  const plots = [...document.querySelectorAll(".plot")].flatMap((plot) => [
    plot.layout.xaxis.title?.text, plot.layout.yaxis.title?.text, ...(plot.layout.xaxis.ticktext ?? []),
    ...plot.data.flatMap(({ name, hovertext, hovertemplate, meta }) =>
      [name, hovertemplate, ...(hovertext ?? []), ...(meta ?? [])]),
  ]);
  const files = [...document.querySelectorAll("figure")].map((figure) => figure.dataset.file);
  const texts = [document.title, document.querySelector("main").innerText, csvText(rowsShown())];
  return [...texts, ...viewFields.keys(), ...labels, ...plots, ...files].filter(Boolean);
}"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    return {
        "images": image_study(folder / "images"),
        "better": image_study(folder / "better", boost=2.0, sizes=(64,)),
        "segments": image_study(folder / "segments", declaration=SEGMENTS, seeds=(0,)),
        "one": image_study(folder / "one", sizes=(128,), slow=()),
    }


@pytest.fixture(scope="module")
def pages(studies) -> dict[str, Path]:
    written = {name: write_report(directory) for name, directory in studies.items()}
    return written | {"comparison": write_comparison(studies["images"], studies["better"])}


@pytest.fixture(scope="module")
def visit(browser, pages):
    with visitor(browser) as open_path:
        yield lambda name, **options: open_path(pages[name], **options)


def figures(page: Page, panels: str) -> list[str]:
    return page.locator(f"#{panels} figcaption").all_inner_texts()


@pytest.mark.parametrize("name", ["images", "segments", "one", "comparison"])
def test_no_page_has_words_of_another_task(visit, name):
    page = visit(name)
    for row in page.locator("#table .unfold").all()[:2]:
        row.click()
    shown = page.evaluate(SHOWN)
    assert len(shown) > 30
    assert [text for text in shown if FOREIGN.search(text)] == []
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
    expect(page.get_by_text("nothing was measured in this selection")).to_have_count(0)
    page.close()


def test_the_answer_and_the_tables_are_in_its_words(studies):
    text = answer(read_summary(studies["images"])).text
    assert "comes from hornet at size 128." in text
    assert "The smallest number of parameters within 2% of that" in text
    assert "5.7M instead of 22M (3.9× smaller)" in text
    assert "The fastest to train is convnext at size 64:" in text
    assert "images/s" in text
    assert "Still improving when their budget ended: vit at sizes 128 and 64;" in text
    assert not FOREIGN.search(text)
    study = Study.open(studies["images"])
    assert "3 models, 1 setting, 2 sizes, 2 seeds; runs: 12 finished" in repr(study)
    assert list(study.runs.columns[:4]) == ["run_id", "setting", "model", "size"]
    assert {"images_per_second", "training_images", "inference images_per_second at 256"} < set(study.runs)
    cells = study.cells.set_index(["model", "size"])
    assert cells.loc[("vit", 64), "inference images_per_second at 128"] > 0
    assert cells["inference images_per_second at 256"].isna().sum() == 2
    assert study.answer == text


def test_parameters_are_the_first_cost_where_a_task_names_none(visit):
    page = visit("images")
    titles = ["Number of parameters", "Training compute", "Activation memory", "Training speed"]
    assert figures(page, "cost-panels") == titles
    assert (
        page.locator("#figure-cost .caption")
        .inner_text()
        .startswith(
            "The best place is up and left for parameters, compute and memory, up and right for speed."
        )
    )
    assert page.evaluate("document.querySelectorAll('#cost-panels .plot')[3].layout.xaxis.title.text") == (
        "Training images/s (log scale)"
    )
    assert page.locator("#cost-controls select").count() == 2
    page.close()


def test_costs_of_its_own_come_first_and_may_be_counted_otherwise(visit):
    page = visit("segments")
    first = ["Window memory", "Latency"]
    assert figures(page, "cost-panels")[:2] == first
    before = points(page, "cost-panels")
    page.locator("#cost-controls select[name=window]").select_option("padded")
    assert figures(page, "cost-panels")[:2] == ["Padded window", "Latency"]
    assert page.url.endswith("#cost.window=padded")
    after = {trace["name"]: trace["x"] for trace in points(page, "cost-panels") if trace["name"]}
    assert after.pop("convnext") == []
    for trace in before:
        if trace["name"] in after:
            assert after[trace["name"]] == [2 * value for value in trace["x"]]
    assert (
        "Window memory is counted “at test time”; it can be switched to “with padding”, for the models"
        in (page.locator("#figure-cost .caption").inner_text())
    )
    heads = page.locator("#table thead th").all_inner_texts()
    assert heads[heads.index("parameters") :][:4] == [
        "parameters",
        "window memory",
        "padded window",
        "latency",
    ]
    assert column(page, "latency")[0].endswith(" ms")
    assert "Smallest window memory within 2%" in page.locator(".picks").inner_text()
    page.close()


def test_scaling_is_drawn_as_it_was_declared(visit):
    page = visit("images")
    figure = page.locator("#figure-inference")
    expect(figure.locator("h2")).to_have_text("How does it scale with resolution?")
    assert figures(page, "inference-panels") == [
        "Images per second against resolution",
        "Memory against resolution",
    ]
    traces = {trace["name"]: trace for trace in points(page, "inference-panels")}
    assert traces["hornet"]["x"] == [64, 128, 256]
    assert traces["vit"]["x"] == [64, 128]
    assert "at 64 pixels<br>sees 17" in traces["vit"]["hovertext"][0]
    assert "needs 15.6 MiB" in traces["vit"]["hovertext"][0]
    expect(figure.locator(".notes")).to_have_text(
        "vit goes no further in digits: position embeddings end at 128 pixels."
    )
    page.locator("#inference-controls select[name=size]").select_option("64")
    assert page.url.endswith("#inference.size=64")
    page.close()


def test_links_and_files_have_its_words(visit, tmp_path):
    view = "#hide=vit&cost.size=64&curves.along=images&table.model=hornet&table.sort=size"
    page = visit("images", view=view)
    assert column(page, "model") == ["hornet"] * 4
    assert column(page, "size") == ["64", "64", "128", "128"]
    assert {tuple(trace["x"]) for trace in points(page, "curves-panels")} == {(3200, 6400, 9600, 12800)}
    with page.expect_download() as download:
        page.locator("#table-csv").click()
    download.value.save_as(tmp_path / "rows.csv")
    (row, *_) = csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_bytes().decode(), newline=""))
    assert list(row)[:5] == ["run_id", "model", "definition", "setting", "size"]
    assert row["definition"] == "hornet_tiny(orders=[2, 3, 4, 5])"
    assert float(row["training_images"]) == 12800
    assert float(row["inference images_per_second at 64"]) > 0
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_was_still_improving_ends_in_an_arrow(visit, scheme):
    page = visit("images", scheme=scheme)
    drawn = page.evaluate(
        "[...document.querySelectorAll('#curves-panels .plot')].map((plot) => plot.data.filter("
        "(trace) => trace.marker?.symbol === 'arrow').map(({ x, y, marker }) => ({ x, y, marker })))"
    )
    assert [len(arrows) for arrows in drawn] == [1, 0]  # of quality, and no loss
    (arrow,) = drawn[0]
    assert arrow["x"][0] == 12800 < arrow["x"][1]
    assert arrow["y"][0] < arrow["y"][1] < 100
    assert arrow["marker"]["color"] == page.evaluate("seriesStyle(1).colour")
    mean = next(trace for trace in points(page, "curves-panels") if trace["name"] == "vit, size 128")
    assert mean["x"][-1] == 12800
    texts = page.evaluate(
        "Object.fromEntries(document.querySelector('#curves-panels .plot').data.filter((trace) => trace.name)"
        ".map((trace) => [trace.name, trace.meta]))"
    )
    assert texts["vit, size 128"][2] == "still improving when its budget ended"
    assert len(texts["hornet, size 128"]) == 2
    hover = str([trace["hovertext"] for trace in points(page, "quality-panels") if trace["name"] == "vit"])
    assert hover.count("still improving when its budget ended") == 2
    expect(page.locator("#figure-curves .caption")).to_contain_text(
        "that ends in an arrow was still improving"
    )
    expect(page.locator(".protocol")).to_contain_text("more than 2% of its range over the last quarter")
    page.locator("#curves-controls select[name=size]").select_option("64")
    page.locator("#legend button", has_text="vit").click()
    assert not [trace for trace in points(page, "curves-panels") if len(trace["x"]) == 2]
    page.close()


def test_a_study_at_one_size_has_rows_and_no_arrows(visit):
    page = visit("one")
    expect(page.locator("#figure-quality h2")).to_have_text("How good is each model?")
    assert page.evaluate("document.querySelector('#quality-panels .plot').layout.yaxis.ticktext") == [
        "convnext",
        "vit",
        "hornet",
    ]
    expect(page.locator("#figure-curves .caption")).to_contain_text("No line was still improving")
    page.close()


def test_two_studies_compare(visit):
    page = visit("comparison")
    assert "A is better in 0 and worse in 3." in page.locator(".answer").inner_text()
    assert "Only in A: convnext, size 128, digits;" in page.locator(".notes").inner_text()
    heads = page.locator("#table thead th").all_inner_texts()
    assert [head.rstrip(" ▲▼") for head in heads][-4:] == [
        "parameters",
        "activation memory",
        "training compute",
        "training speed",
    ]
    page.locator("#table .unfold").first.click()
    expect(page.locator("#table .unfolded")).to_contain_text("images/s")
    page.close()
