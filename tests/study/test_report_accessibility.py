"""Every page under axe-core: no violation of WCAG 2.2 A and AA, nor of its best practices."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from gatework.study.comparison_page import write_comparison
from gatework.study.report import write_report
from tests.study.browser import browser, every_look, visitor
from tests.study.synthetic_gaps import companion_study, gap_study
from tests.study.synthetic_images import image_study
from tests.study.synthetic_studies import recall_study, run_spec, text_study, write_study

__all__ = ["browser"]

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
MIXERS = ("attention", "hyena", "mamba2")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("accessible")
    slow = ("hyena",)
    study = recall_study(folder / "study", rates=(0.001, 0.003), settings=1, mixers=MIXERS, slow=slow)
    baseline = recall_study(folder / "baseline", boost=0.8, steps=300, settings=1)
    gap = gap_study(folder / "gap", seeds=(0, 1))
    companion_study(gap)
    run = run_spec("recall", "easy", "attention", 32, 0.1, 0)
    return {
        "study": write_report(study),
        "comparison": write_comparison(study, baseline),
        "gap": write_report(gap),
        "text": write_report(text_study(folder / "text")),
        "images": write_report(image_study(folder / "images")),
        "empty": write_report(write_study(folder / "empty", [run], [], title="Nothing yet")),
    }


@pytest.fixture(scope="module")
def visit(browser, pages):
    with visitor(browser) as open_path:
        yield lambda name, **options: open_path(pages[name], **options)


def violations(page: Page) -> list[str]:
    found = Axe().run(page, options={"runOnly": TAGS, "resultTypes": ["violations"]}).response
    assert len(found["passes"]) > 25  # it did look
    return [
        f"{entry['id']}: {node['html'][:100]} {node['failureSummary']}"
        for entry in found["violations"]
        for node in entry["nodes"]
    ]


@pytest.mark.parametrize("name", ["study", "comparison", "gap", "images"])
@every_look
def test_nobody_is_kept_out(visit, name, scheme, width):
    page = visit(name, scheme=scheme, width=width)
    for row in page.locator("#table .unfold").all()[:3]:
        row.click()
    page.locator("#legend button").last.click()
    assert page.locator("#table .unfolded").count() > 0
    page.evaluate("document.querySelector('.tall').scrollTop = 0")  # no row half below the head
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize("name", ["text", "empty"])
def test_nobody_is_kept_out_of_small_studies(visit, name):
    page = visit(name, view="#theme=dark", width=390)
    assert violations(page) == []
    page.close()


def test_a_planted_defect_is_found(visit):
    page = visit("text")
    page.evaluate("document.querySelector('.answer').style.color = '#b0b0b0'")
    page.evaluate("document.getElementById('copy-link').textContent = ''")
    page.evaluate("document.querySelector('h2').outerHTML = '<h4>too deep</h4>'")
    found = {entry.split(":")[0] for entry in violations(page)}
    assert found == {"color-contrast", "button-name", "heading-order"}
    page.close()
