"""Sections of a page: those of every study, those that a task brings, and those of a plugin."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect

from gatework import registry
from gatework.registry import load_plugins
from gatework.study.answer import answer
from gatework.study.report import read_summary, write_report
from gatework.study.sections import SECTIONS, left_out, page_sections, sections_of
from gatework.study.sections.section import Section
from gatework.study.study import Study
from gatework.tasks.language import LANGUAGE
from gatework.tasks.text_declaration import TEXT
from tests.study.browser import browser, column, visitor
from tests.study.synthetic_images import IMAGES, image_study

__all__ = ["browser"]

PLUGIN = '''
from gatework.study.sections.section import Section, figure_html


class Weather(Section):
    """What the weather was like in each cell."""

    name = "weather"
    table_columns = {"clouds": "clouds <b>"}

    def html(self):
        caption, notes = "Clouds over <every> cell.", ["It rained."]
        figure = figure_html("weather", "How was the weather?", caption, notes=notes)
        return "<p id='sky'>Sky &amp; land</p>" + figure

    def data(self):
        return {"clouds": [index / 10 for index, _ in enumerate(self.summary.cells)]}

    @classmethod
    def source(cls):
        return """
            const logAxis = "a name that another script has, too";
            function drawWeather({ clouds }) {
              const selection = selectionOf("weather-controls");
              const shown = page.cells.map((cell, index) => ({ ...cell, clouds: clouds[index] }))
                .filter((cell) => !hiddenSeries.has(cell.series) && isSizeShown(cell.size, selection));
              const [plot] = panels("weather-panels", ["Clouds"]);
              const [x, y] = [shown.map((cell) => cell.clouds), shown.map((cell) => cell.quality[0])];
              draw(plot, [{ x, y }], layout(axis("clouds"), qualityAxis()));
            }
            section("weather", {
              controls(data) {
                const form = document.getElementById("weather-controls");
                sizeChoice(form, everySize(), () => drawWeather(data));
              },
              draw: drawWeather,
            });
        """

    def findings(self):
        return ["It rained most of the time."]

    def caveats(self):
        return ["Nobody looked out at night."]

    def protocol(self):
        return {"Rain": "water & wind"}

    def cell_lines(self, cell):
        return [f"{cell.size} drops"]

    def cell_columns(self):
        return [{"drops": 2.0 * cell.size} for cell in self.summary.cells]

    @staticmethod
    def run_columns(metrics):
        return {"clouds": metrics["rain"] / 2} if metrics.get("rain") is not None else {}


class NoSection:
    name = "none"
'''
WITH_WEATHER = replace(IMAGES, sections=("my_weather:Weather",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weather")
    (folder / "my_weather.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def directory(folder) -> Path:
    return image_study(folder / "study", declaration=WITH_WEATHER, extra={"rain": 0.5})


@pytest.fixture(scope="module")
def without(directory) -> Path:
    """The page as it is written where the plugin was not loaded."""
    assert "my_weather" not in sys.modules
    return write_report(directory, directory / "without.html")


@pytest.fixture(scope="module")
def loaded(folder, without):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.plugins, "_loaded_plugins", {})
        patch.setattr(sys, "path", [str(folder), *sys.path])
        load_plugins(["my_weather"])
        yield
    del sys.modules["my_weather"]


@pytest.fixture(scope="module")
def visit(browser):
    with visitor(browser) as open_path:
        yield open_path


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_is_where_it_is_said_to_be(name):
    (kind,) = sections_of(replace(IMAGES, sections=(name,)))
    assert issubclass(kind, Section)
    assert kind.name == name
    assert (f'section("{name}"' in kind.source()) == (kind.script is not None)


def test_those_of_the_task_come_after_quality():
    general = ["quality", "costs", "scaling", "curves", "candidates", "runs"]
    assert [kind.name for kind in page_sections(LANGUAGE)] == general
    assert [kind.name for kind in page_sections(TEXT)] == [
        "quality",
        "recall_gap",
        "recall_prediction",
        *general[1:],
    ]
    assert [kind.name for kind in sections_of(TEXT)] == ["recall_gap", "recall_prediction"]
    assert left_out(TEXT) == []


def test_a_section_may_leave_everything_as_it_is(tmp_path):
    class Quiet(Section):
        name = "quiet"

    summary = read_summary(image_study(tmp_path / "s", models=("vit",), seeds=(0,)))
    quiet = Quiet(summary)
    assert (quiet.html(), quiet.data(), quiet.source()) == ("", None, "")
    for found in (quiet.findings(), quiet.caveats(), quiet.protocol(), quiet.cell_columns()):
        assert not found
    assert not quiet.cell_lines(summary.cells[0])
    assert not quiet.run_columns({})


def test_what_a_file_names_is_not_imported(without, folder):
    page = without.read_text()
    assert "my_weather" not in sys.modules
    assert left_out(WITH_WEATHER) == ["my_weather:Weather"]
    assert "their plugins were not loaded: the sections my_weather:Weather." in page
    assert "gatework report with --plugin my_weather writes them too." in page
    assert "How was the weather?" not in page
    assert page_sections(WITH_WEATHER) == page_sections(IMAGES)
    assert left_out(replace(IMAGES, sections=("os:system", "<b>"))) == ["os:system", "<b>"]


@pytest.mark.usefixtures("loaded")
def test_a_plugin_brings_a_section_to_answers_and_tables(directory):
    assert left_out(WITH_WEATHER) == []
    summary = read_summary(directory)
    found = answer(summary)
    assert found.findings == ["It rained most of the time."]
    assert found.caveats == ["Nobody looked out at night."]
    assert found.text.endswith("It rained most of the time. Nobody looked out at night.")
    study = Study.open(directory)
    assert study.runs["clouds"].tolist() == [0.25] * 12
    assert study.runs["rain"].tolist() == [0.5] * 12
    assert study.cells["drops"].tolist() == [2.0 * size for size in study.cells["size"]]


@pytest.mark.usefixtures("loaded")
def test_a_plugin_brings_a_section_to_the_page(directory, visit):
    page = visit(write_report(directory))
    order = page.locator("section.figure").evaluate_all("(nodes) => nodes.map((node) => node.id)")
    assert order[:3] == ["figure-quality", "figure-weather", "figure-cost"]
    expect(page.locator("#sky")).to_have_text("Sky & land")
    figure = page.locator("#figure-weather")
    expect(figure.locator(".caption").first).to_have_text("Clouds over <every> cell.")
    expect(figure.locator(".notes")).to_have_text("It rained.")
    x = "document.querySelector('#weather-panels .plot').data[0].x"
    assert page.evaluate(x) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    figure.locator("select[name=size]").select_option("64")
    page.locator("#legend button", has_text="vit").click()
    assert page.evaluate(x) == [0.0, 0.4]
    assert page.url.endswith("#hide=vit&weather.size=64")
    assert column(page, "clouds") == ["0.250"] * 8
    assert "clouds <b>" in page.locator("#table thead").inner_text()
    assert "64 drops" in page.evaluate("document.querySelector('#cost-panels .plot').data[1].hovertext[0]")
    expect(page.locator(".protocol")).to_contain_text("water & wind")
    expect(page.locator(".answer").last).to_have_text("It rained most of the time.")
    assert "were not loaded" not in page.locator("main").inner_text()
    page.close()


@pytest.mark.usefixtures("loaded")
def test_what_is_no_section_is_refused():
    for name in ("my_weather:NoSection", "my_weather:Nothing", "my_weather"):
        with pytest.raises(TypeError, match=f"section '{name}' must be a subclass of"):
            sections_of(replace(IMAGES, sections=(name,)))
