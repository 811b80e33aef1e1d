"""The report page as a reader meets it: in a browser, without a network, by mouse and by keyboard."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gatework.study.report import write_report
from tests.study.browser import browser, column, points, visitor
from tests.study.synthetic_studies import (
    BITS,
    as_before,
    recall_study,
    result_of,
    run_spec,
    text_study,
    write_study,
)

__all__ = ["browser"]

INJECTION = "<b>x</b><img src=x onerror=window.hacked=1><script>window.hacked=1</script>%{x}"
PLOTS = "document.querySelectorAll('.js-plotly-plot .main-svg:first-child').length"


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    run = run_spec("text", "source", "attention", 32, 0.1, 0)
    evil = [run_spec("recall", INJECTION, INJECTION, width, 0.1, 0) for width in (32, 64)]
    results = [result_of(evil[0], 0.5), result_of(evil[1], 0.5, status="failed", message=INJECTION)]
    return {
        "recall": write_report(recall_study(folder / "recall")),
        "rates": write_report(recall_study(folder / "rates", rates=(0.001, 0.003))),
        "text": write_report(text_study(folder / "text")),
        "empty": write_report(write_study(folder / "empty", [run], [], quality=BITS, title="Nothing yet")),
        "untimed": write_report(as_before(recall_study(folder / "untimed"), 2)),
        "evil": write_report(write_study(folder / "evil", evil, results, title=INJECTION)),
    }


@pytest.fixture(scope="module")
def visit(browser, studies):
    with visitor(browser) as open_path:
        yield lambda name, **options: open_path(studies[name], **options)


@pytest.fixture(scope="module")
def opened(visit) -> Page:
    return visit("recall")


@pytest.fixture
def recall(opened) -> Page:
    """The recall study's page as it opens; loading it anew for every test would take most of the time."""
    opened.emulate_media(color_scheme="light")
    opened.evaluate("() => { history.replaceState(null, '', location.href.split('#')[0]); restoreView(); }")
    return opened


@pytest.mark.parametrize(("name", "count"), [("recall", 2 + 4 + 4), ("text", 1 + 4 + 4), ("empty", 9)])
def test_every_figure_is_drawn(visit, name, count):
    page = visit(name, width=390)
    assert page.evaluate(PLOTS) == count
    empty = page.get_by_text("nothing was measured in this selection").count()
    assert empty == (count if name == "empty" else 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.scrollWidth <= 358)")


def test_points_say_what_they_are(recall):
    page = recall
    traces = [trace for trace in points(page, "quality-panels") if trace["hovertext"]]
    texts = [text for trace in traces for text in trace["hovertext"]]
    assert any("<b>attention, width 32</b>" in text and "learning rate 0.003" in text for text in texts)
    assert any("1 of 2 seeds diverged" in text for text in texts)
    point = page.locator("#cost-panels .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    expect(page.locator("#cost-panels .hoverlayer").first).to_contain_text("decoding state")


def test_lower_is_better_turns_the_figures(visit):
    page = visit("text")
    names = page.evaluate("document.querySelector('#quality-panels .plot').layout.yaxis.ticktext")
    assert [name.rstrip("…") for name in names][::-1][0] == "attention"  # best on top
    assert page.locator("#quality-panels").get_by_text("bits per byte (lower is better)").count() == 1
    frontier = points(page, "cost-panels")[0]
    assert frontier["x"] == sorted(frontier["x"])
    assert frontier["y"] == sorted(frontier["y"], reverse=True)


def test_selections_change_the_figures(visit):
    page = visit("rates")
    assert any(
        "learning rate 0.001, best of 2 on validation data" in str(trace["hovertext"])
        for trace in points(page, "quality-panels")
    )
    page.locator("#cost-controls select[name=width]").select_option("32")
    assert {len(trace["x"]) for trace in points(page, "cost-panels")[1::2]} == {1}
    page.locator("#cost-controls select[name=setting]").select_option("")
    assert page.locator("#cost-panels .js-plotly-plot").count() == 8
    page.locator("#cost-controls select[name=setting]").select_option("N=64, 4 pairs")
    assert page.locator("#cost-panels .js-plotly-plot").count() == 4

    before = len(points(page, "curves-panels"))
    tokens = points(page, "curves-panels")[0]["x"]
    page.locator("#curves-controls select[name=along]").select_option("step")
    assert points(page, "curves-panels")[0]["x"] == [value / 4096 for value in tokens]
    page.locator("#curves-controls select[name=rate]").select_option("all")
    assert len(points(page, "curves-panels")) > before


def test_the_state_axis_can_count_as_published(recall):
    page = recall
    carried = points(page, "cost-panels")
    expect(page.locator("#cost-panels figcaption").first).to_contain_text("Decoding state")
    page.locator("#cost-controls select[name=state]").select_option("published_state")
    expect(page.locator("#cost-panels figcaption").first).to_contain_text("Decoding state as published")
    assert points(page, "cost-panels")[1]["x"] == [2 * value for value in carried[1]["x"]]
    assert "cost.state=published_state" in page.url
    assert column(page, "published_state_bytes").count("–") > column(page, "state_bytes").count("–")


def test_generation_is_drawn_and_ends_where_it_must(recall):
    page = recall
    speed = {trace["name"]: trace for trace in points(page, "decoding-panels")}
    assert speed["attention"]["x"] == [64, 256, 1024]
    assert speed["hyena"]["x"] == [64]
    assert "context of 64 tokens" in speed["hyena"]["hovertext"][0]
    ends = page.locator("#figure-decoding .notes")
    expect(ends).to_contain_text("hyena goes no further in N=64, 4 pairs: Hyena reads at most 64 tokens")
    assert "–" in column(page, "decoding tokens_per_second at 1024")
    page.locator("#decoding-controls select[name=width]").select_option("")
    assert len(points(page, "decoding-panels")) == 2 * len(speed)


def test_without_timed_decoding_there_is_no_such_figure(visit):
    page = visit("untimed")
    assert page.locator("#figure-decoding").count() == 0
    assert page.evaluate(PLOTS) == 2 + 4 + 2
    assert page.locator("#cost-controls select[name=state]").count() == 0


def test_the_legend_hides_a_mixer_everywhere(recall):
    page = recall
    button = page.locator("#legend button", has_text="attention").first
    drawn = len(points(page, "quality-panels"))
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "false")
    assert len(points(page, "quality-panels")) == drawn - 3  # its line, its crosses, its published line
    assert "attention" not in column(page, "mixer")
    page.locator("#show-all").click()
    assert len(points(page, "quality-panels")) == drawn
    page.locator("#show-none").click()
    expect(page.locator("#table-count")).to_have_text("0 of 64 runs")


def test_the_table_sorts_by_keyboard(recall):
    page = recall
    quality = page.locator("#table th[data-key=quality]")
    expect(quality).to_have_attribute("aria-sort", "descending")
    values = [float(text) for text in column(page, "quality") if text != "–"]
    assert values == sorted(values, reverse=True)
    assert column(page, "quality")[-2:] == ["–", "–"]
    quality.locator("button").focus()
    page.keyboard.press("Enter")
    expect(quality).to_have_attribute("aria-sort", "ascending")
    assert [float(text) for text in column(page, "quality") if text != "–"] == sorted(values)
    assert column(page, "quality")[-2:] == ["–", "–"]  # what is unknown stays last
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#table th[data-key=status]")).to_have_attribute("aria-sort", "ascending")
    assert column(page, "status") == sorted(column(page, "status"))


def test_the_table_filters_and_unfolds_by_keyboard(recall):
    page = recall
    page.locator("#table-filter").focus()
    page.keyboard.type("failed")
    expect(page.locator("#table-count")).to_have_text("1 of 64 runs")
    row = page.locator("#table .unfold")
    row.focus()
    page.keyboard.press("Enter")
    expect(row).to_have_attribute("aria-expanded", "true")
    expect(row).to_be_focused()
    detail = page.locator("#table .unfolded")
    for text in ("RuntimeError: out of memory", '"candidate": "mamba2"', "gatework compare recall"):
        expect(detail).to_contain_text(text)
    page.keyboard.press("Enter")
    expect(detail).to_have_count(0)


def test_dark_and_light_differ_and_follow_the_system(recall):
    page = recall

    def colours() -> list[str]:
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            " document.querySelector('#quality-panels .plot').data[0].line.color,"
            " document.querySelector('#quality-panels .plot').layout.font.color]"
        )

    light = colours()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "light => document.querySelector('.plot').layout.font.color !== light", arg=light[3]
    )
    assert all(before != after for before, after in zip(light, colours(), strict=True))


def test_every_mixer_has_its_own_look_and_enough_contrast(recall):
    page = recall
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        colours = page.evaluate("[...Array(NUM_COLOURS).keys()].map((i) => seriesStyle(i).colour)")
        surface = page.evaluate("cssColour('--surface')")
        assert len(set(colours)) == 10
        assert min(contrast(colour, surface) for colour in colours) > 3
    looks = page.evaluate("[...Array(100).keys()].map((i) => seriesStyle(i)).map((s) => s.colour + s.symbol)")
    assert len(set(looks)) == 100


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two ``#rrggbb`` colours (WCAG 2, relative luminance)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [
            value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels
        ]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_names_from_files_do_nothing(visit):
    page = visit("evil", width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#table .unfold").first.click()
    point = page.locator("#quality-panels .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    expect(page.locator("#quality-panels .hoverlayer")).to_contain_text("<b>x</b><img src=x")
    curve = page.evaluate("document.querySelector('#curves-panels .plot').data.map((trace) => trace.meta)")
    page.locator("#curves-controls select[name=width]").select_option("")
    assert curve is not None
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0
    assert page.locator("script").count() == 3
    assert page.title() == INJECTION
    expect(page.locator("h1")).to_have_text(INJECTION)


def test_a_script_that_got_in_would_not_run(browser, studies, tmp_path):
    """The policy is the second line of defence: tried on a page that was tampered with."""
    page_text = studies["text"].read_text().replace("</h1>", "</h1><script>window.hacked = 1</script>", 1)
    (tmp_path / "tampered.html").write_text(page_text)
    page = browser.new_page()
    page.goto((tmp_path / "tampered.html").as_uri())
    expect(page.locator("#table-count")).to_have_text("8 of 8 runs")
    assert page.evaluate("window.hacked") is None
    page.close()
