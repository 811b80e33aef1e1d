"""What a reader takes away from the page: a link to the present view, figures and rows as files."""

from __future__ import annotations

import csv
import io
import struct
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Page, expect

from gatework.study.report import write_report
from tests.study.browser import browser, column, points, visitor
from tests.study.synthetic_studies import recall_study, result_of, run_spec, write_study

__all__ = ["browser"]

MIXERS = ("attention", "hyena", "base_conv+attention")
FORMULA = '=HYPERLINK("http://x","a")'


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    return write_report(recall_study(folder / "recall", rates=(0.001, 0.003), mixers=MIXERS))


@pytest.fixture(scope="module")
def visit(browser):
    with visitor(browser, permissions=["clipboard-read", "clipboard-write"]) as open_path:
        yield open_path


@pytest.fixture(scope="module")
def opened(visit, study) -> Page:
    return visit(study)


@pytest.fixture
def page(opened) -> Page:
    opened.evaluate("() => { history.replaceState(null, '', location.href.split('#')[0]); restoreView(); }")
    return opened


def view(page: Page) -> dict[str, list[str]]:
    """What the address says of the view."""
    return parse_qs(urlsplit(page.url).fragment, keep_blank_values=True)


def change_everything(page: Page) -> None:
    page.locator("#legend button", has_text="base_conv+attention").click()
    page.locator("#quality-controls input[name=published]").uncheck()
    page.locator("#cost-controls select[name=setting]").select_option("")
    page.locator("#cost-controls select[name=width]").select_option("32")
    page.locator("#curves-controls select[name=along]").select_option("step")
    page.locator("#table-controls select[name=status]").select_option("finished")
    page.locator("#table-filter").fill("seed 1")
    page.locator("#table th[data-key=loss] button").click()
    page.locator("#table th[data-key=loss] button").click()
    page.locator("#table .unfold").first.click()
    page.locator("#theme span", has_text="Dark").click()


def state(page: Page) -> list[object]:
    return [
        page.locator("#legend button[aria-pressed=false]").all_inner_texts(),
        page.locator("#quality-controls input").is_checked(),
        page.evaluate("['cost-controls', 'curves-controls', 'table-controls'].map(selectionOf)"),
        page.locator("#table-filter").input_value(),
        page.locator("#table th[aria-sort=descending]").all_inner_texts(),
        page.locator("#table .unfolded").all_inner_texts(),
        page.evaluate("[chosenTheme(), getComputedStyle(document.body).backgroundColor]"),
        [len(points(page, plot)) for plot in ("quality-panels", "cost-panels", "curves-panels")],
        column(page, "loss"),
    ]


def test_the_defaults_leave_no_trace_in_the_address(page):
    assert "#" not in page.url
    page.locator("#cost-controls select[name=width]").select_option("32")
    assert view(page) == {"cost.width": ["32"]}
    page.locator("#cost-controls select[name=width]").select_option("")
    assert "#" not in page.url


def test_a_link_restores_the_whole_view(page, visit, study):
    before = state(page)
    change_everything(page)
    changed = state(page)
    assert all(now != then for now, then in zip(changed, before, strict=True))
    assert set(view(page)) == {
        *("hide", "width.published", "cost.setting", "cost.width", "curves.along"),
        *("table.status", "table.filter", "table.sort", "table.open", "theme"),
    }
    page.locator("#copy-link").click()
    expect(page.locator("#link-note")).to_have_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    other = visit(study, view="#" + link.split("#")[1])
    assert state(other) == changed
    other.close()


def test_back_and_forward_walk_through_the_views(page):
    page.locator("#legend button", has_text="hyena").click()
    page.locator("#theme span", has_text="Dark").click()
    page.locator("#table-filter").press_sequentially("seed 0")  # typing adds no steps
    assert view(page) == {"hide": ["hyena"], "theme": ["dark"], "table.filter": ["seed 0"]}
    page.go_back()
    expect(page.locator("#theme input[value=system]")).to_be_checked()
    assert view(page) == {"hide": ["hyena"]}
    assert "seed 0" not in page.locator("#table-filter").input_value()
    page.go_back()
    expect(page.locator("#legend button[aria-pressed=false]")).to_have_count(0)
    page.go_forward()
    expect(page.locator("#legend button[aria-pressed=false]")).to_have_text("hyena")
    page.evaluate("location.hash = '#cost.width=64'")
    expect(page.locator("#legend button[aria-pressed=false]")).to_have_count(0)
    expect(page.locator("#cost-controls select[name=width]")).to_have_value("64")


@pytest.mark.parametrize(
    "fragment",
    [
        "#%E0%A4%A=%&&==",
        "#hide=nobody&cost.width=7&cost.setting=x&curves.along=__proto__&theme=pink&width.published=",
        "#table.sort=nothing&table.open=a&table.open=&table.status=x&table.mixer=x",
        "#table.sort=-&unknown=1&__proto__=1&constructor=2&hasOwnProperty=3",
        "#runs",
        "#" + "theme=x&" * 2000,
    ],
)
def test_a_malformed_link_opens_the_defaults(page, visit, study, fragment):
    before = state(page)
    other = visit(study, view=fragment)
    assert state(other) == before
    other.close()


def test_a_link_into_the_page_keeps_the_view(page):
    page.locator("#legend button", has_text="hyena").click()
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.url.endswith("#runs")
    expect(page.locator("#runs")).to_be_focused()
    expect(page.locator("#legend button[aria-pressed=false]")).to_have_text("hyena")
    page.locator("#copy-link").click()
    assert page.evaluate("navigator.clipboard.readText()").endswith("#hide=hyena")


def test_the_reader_chooses_the_colours(page):
    def look() -> list[str]:
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).colorScheme,"
            " document.querySelector('.plot').layout.font.color]"
        )

    system = look()
    page.locator("#theme input[value=system]").focus()
    page.keyboard.press("ArrowRight")
    assert look()[0] == system[0]
    page.keyboard.press("ArrowRight")
    dark = look()
    assert all(now != then for now, then in zip(dark, system, strict=True))
    page.emulate_media(color_scheme="dark")
    assert look() == dark
    page.keyboard.press("ArrowLeft")
    assert [look()[0], look()[2]] == [system[0], system[2]]  # light, on a dark system
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("dark => document.querySelector('.plot').layout.font.color === dark", arg=dark[2])
    assert look()[0] == dark[0]
    page.emulate_media(color_scheme="light")


def test_published_results_are_a_switch(page):
    names = {trace["name"] for trace in points(page, "quality-panels")}
    assert {"attention, published", "hyena, published", "attention", "hyena"} <= names
    ticks = "document.querySelector('#quality-panels .plot').layout.xaxis.ticktext"
    assert page.evaluate(ticks) == ["32", "64", "128", "256", "512"]
    looks = page.evaluate(
        "document.querySelector('#quality-panels .plot').data"
        ".filter((trace) => trace.name?.includes('published'))"
        ".map((trace) => [trace.marker.symbol, trace.line.dash])"
    )
    assert len(looks) == 2
    assert all(symbol.endswith("-open") and dash == "dash" for symbol, dash in looks)
    page.locator("#quality-controls input").focus()
    page.keyboard.press("Space")
    assert not any("published" in str(trace["name"]) for trace in points(page, "quality-panels"))
    assert page.evaluate(ticks) == ["32", "64"]


@pytest.mark.parametrize(
    ("plot", "index", "theme"), [("quality", 0, "dark"), ("cost", 1, "light"), ("curves", 0, "dark")]
)
def test_figures_are_saved_by_keyboard(page, tmp_path, plot, index, theme):
    page.locator("#theme span", has_text=theme.capitalize()).click()
    figure = page.locator(f"#{plot}-panels figure").nth(index)
    for kind in ("PNG", "SVG"):
        button = figure.get_by_role("button", name=f"as {kind}")
        button.focus()
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        name = download.value.suggested_filename
        assert name.startswith(f"recall-{plot}-")
        assert name.endswith(f".{kind.lower()}")
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-=._")
        download.value.save_as(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        if kind == "PNG":
            assert content.startswith(b"\x89PNG")
            assert min(struct.unpack(">II", content[16:24])) > 1000  # three pixels where the screen has one
        else:
            drawing = ElementTree.fromstring(content)
            texts = {text.strip() for text in drawing.itertext()}
            caption = figure.locator("figcaption").inner_text()
            assert caption in texts
            assert "attention" in texts or "attention, width 64" in texts  # the legend
            background = {"light": "rgb(255, 255, 255)", "dark": "rgb(26, 29, 33)"}[theme]
            first = next(drawing.iter("{http://www.w3.org/2000/svg}rect"))
            assert [first.get("width"), first.get("height")] == [drawing.get("width"), drawing.get("height")]
            assert f"fill: {background}; fill-opacity: 1" in first.get("style")


def test_the_table_filters_by_choice(page):
    page.locator("#table-controls select[name=status]").select_option("diverged")
    expect(page.locator("#table-count")).to_have_text("1 of 48 runs")
    assert column(page, "mixer") == ["hyena"]
    page.locator("#table-controls select[name=mixer]").select_option("attention")
    expect(page.locator("#table-count")).to_have_text("0 of 48 runs")
    page.locator("#table-controls select[name=status]").select_option("")
    page.locator("#table-controls select[name=setting]").select_option("N=64, 4 pairs")
    expect(page.locator("#table-count")).to_have_text("8 of 48 runs")


def save_rows(page: Page, folder: Path) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.locator("#table-csv").click()
    assert download.value.suggested_filename.endswith("-runs.csv")
    download.value.save_as(folder / "rows.csv")
    return list(csv.DictReader(io.StringIO((folder / "rows.csv").read_bytes().decode(), newline="")))


def test_the_rows_shown_are_saved(page, tmp_path):
    page.locator("#table-filter").fill("hyena N=64")
    page.locator("#table th[data-key=seed] button").click()
    rows = save_rows(page, tmp_path)
    assert [row["seed"] for row in rows] == column(page, "seed") == ["0"] * 4 + ["1"] * 4
    assert {row["mixer"] for row in rows} == {"hyena"}
    assert {row["setting"] for row in rows} == {"N=64, 4 pairs"}
    diverged = [row for row in rows if row["status"] == "diverged"]
    assert [(row["quality"], row["message"]) for row in diverged] == [("", "loss 55.0 at step 300")]
    good = next(row for row in rows if row["quality"])
    assert 0 < float(good["quality"]) < float(good["validation_quality"]) + 0.1
    assert float(good["training_flops"]) == float(good["flops_per_token"]) * float(good["training_tokens"])


def test_texts_in_the_file_are_no_formulas(visit, tmp_path):
    run = run_spec("recall", 'two\nlines, "quoted"', FORMULA, 32, 0.1, 0)
    directory = write_study(tmp_path / "s", [run], [result_of(run, 0.5)], title="t")
    page = visit(write_report(directory))
    (row,) = save_rows(page, tmp_path)
    assert row["mixer"] == "'" + FORMULA
    assert row["setting"] == 'two\nlines, "quoted"'
    page.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_every_control_is_reached_by_keyboard_and_shows_it(visit, study, width):
    page = visit(study, width=width)
    wanted = page.evaluate(
        "[...document.querySelectorAll('button, select, input, [tabindex=\"0\"], a')].filter((node) =>"
        " node.checkVisibility() && !node.matches('#table .unfold, #theme input:not(:checked)')).length"
    )
    seen = set()
    for _ in range(wanted + 80):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
              const node = document.activeElement;
              if (node === document.body) return null;
              if (node.matches("#table .unfold")) return "unfold";
              const shown = node.matches("#theme input") ? node.nextElementSibling : node;
              const style = getComputedStyle(shown), box = shown.getBoundingClientRect();
              const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
              if (!outlined) return "no outline: " + node.outerHTML;
              if (box.right < 1 || box.left > innerWidth) return "outside: " + node.outerHTML;
              return [...document.querySelectorAll("*")].indexOf(node);
            }"""
        )
        if found is None:
            break
        seen.add(found)
    assert not [entry for entry in seen if isinstance(entry, str) and entry != "unfold"]
    assert len(seen - {"unfold"}) == wanted
    assert "unfold" in seen
    page.close()
