from __future__ import annotations

import html
import json
import re

import pytest

from gatework.files import FileError
from gatework.study.report import write_report
from gatework.study.spec import StudySpec
from tests.study.synthetic_gaps import companion_study, gap_study
from tests.study.synthetic_studies import (
    MIXERS,
    as_before,
    recall_study,
    result_of,
    run_spec,
    text_study,
    write_study,
)

INJECTION = "<script>window.hacked = 1</script>&\"'$title${x}"


def shown(page: str) -> str:
    """What a reader sees above the figures: tags and scripts taken out."""
    body = re.sub(r"(?s)<(style|script).*?</\1>", " ", page)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


@pytest.fixture(scope="module")
def recall(tmp_path_factory):
    return write_report(recall_study(tmp_path_factory.mktemp("report") / "recall"))


def test_the_page_answers_in_words(recall):
    assert recall.name == "report.html"
    text = shown(recall.read_text())
    assert "Which token mixer recalls best?" in text
    assert "The best accuracy, 0.9" in text
    assert "Every mixer sees the same data in the same order." in text
    assert "gatework compare recall --output runs/recall" in text
    assert "torch 2.9.0" in text
    counts = re.search(r"(?s)<ul class=\"counts\".*?</ul>", recall.read_text())[0]
    assert re.findall(r"\w+ +\w+", re.sub(r" +", " ", shown(counts))) == [
        "64 runs",
        "62 finished",
        "1 diverged",
        "1 failed",
    ]
    assert all(name in text for name in MIXERS)


def test_how_learning_rates_were_chosen_is_said(tmp_path, recall):
    chosen = shown(write_report(recall_study(tmp_path / "s", rates=(0.001, 0.003), settings=1)).read_text())
    assert "chosen on validation data for each mixer, setting and width" in chosen
    assert "the qualities are of test data that nothing was selected on" in chosen
    assert "fixed beforehand, one for each mixer and width" in shown(recall.read_text())
    assert "optimistic" not in chosen + shown(recall.read_text())


def test_what_was_held_equal_is_said_near_the_top(recall, tmp_path):
    text = re.sub(r"\s+", " ", shown(recall.read_text()))
    assert "Held equal: steps 600 steps of 64 sequences for every mixer" in text
    assert text.index("Held equal") < text.index("Best, smallest, fastest")
    directory = text_study(tmp_path / "text")
    study = json.loads((directory / "study.json").read_text())
    study |= {"budget": "1e15 operations for every mixer", "budget_kind": "flops"}
    (directory / "study.json").write_text(json.dumps(study))
    text = re.sub(r"\s+", " ", shown(write_report(directory).read_text()))
    assert "Held equal: compute 1e15 operations for every mixer" in text


def test_cost_stands_beside_quality(recall):
    card = re.search(r'(?s)<li class="pick">.*?</li>', recall.read_text())[0]
    for name in ("standard deviation", "decoding state", "training speed", "activation memory", "parameters"):
        assert f"<dt>{name}</dt>" in card
    assert re.search(r"<dt>training compute</dt><dd>[\d.]+ [GT]FLOP</dd>", card)


def test_published_results_are_explained_where_there_are_any(recall, tmp_path):
    text = shown(recall.read_text())
    assert "arXiv:2312.04927, figure 2" in text
    assert "a vocabulary of 8192 (here 128)" in text
    assert "published results" not in shown(write_report(text_study(tmp_path / "text")).read_text())


def test_the_page_can_be_written_elsewhere(tmp_path):
    directory = text_study(tmp_path / "text")
    page = write_report(directory, tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert not (directory / "report.html").exists()
    with pytest.raises(FileError, match="must be in a directory that exists"):
        write_report(directory, tmp_path / "nowhere" / "page.html")


def test_lower_is_better_is_said(tmp_path):
    text = shown(write_report(text_study(tmp_path / "text")).read_text())
    assert "Bits per byte, lower is better" in text
    assert "down and left" in text


def test_the_page_needs_nothing_else(recall):
    page = recall.read_text()
    assert page.count("plotly.js v") == 1
    outside = re.sub(r"(?s)<script>/\*\*.*?</script>", "", page)
    assert not re.search(r"(?:src|href)=\"(?!#)", outside)
    assert "default-src 'none'" in page
    assert "form-action 'none'" in page


def test_names_from_files_stay_text(tmp_path):
    run = run_spec("recall", INJECTION, INJECTION, 32, 0.1, 0)
    failed = run_spec("recall", INJECTION, INJECTION, 32, 0.1, 1)
    results = [result_of(run, 0.5), result_of(failed, 0.5, status="failed", message=INJECTION)]
    page = write_report(write_study(tmp_path / "s", [run, failed], results, title=INJECTION)).read_text()
    assert INJECTION not in page
    assert "<script>window" not in page
    assert f"<h1>{INJECTION}</h1>" in html.unescape(page)


def test_half_a_surrogate_pair_does_not_lose_the_page(tmp_path):
    run = run_spec("recall", "easy", "odd \ud800 name", 32, 0.1, 0)
    path = write_report(write_study(tmp_path / "s", [run], [result_of(run, 0.5)], title="t"))
    assert "odd ? name" in path.read_text()


@pytest.mark.parametrize("status", ["missing", "failed", "diverged"])
def test_a_study_without_a_finished_run_has_a_page(tmp_path, status):
    run = run_spec("recall", "easy", "attention", 32, 0.1, 0)
    results = [] if status == "missing" else [result_of(run, 0.5, status=status, message="boom")]
    page = write_report(write_study(tmp_path / "s", [run], results, title="t")).read_text()
    assert "No run has finished" in page
    assert f"<b>1</b> {status}" in page


def test_results_of_another_grid_are_mentioned(tmp_path):
    runs = [run_spec("recall", "easy", "attention", 32, 0.1, seed) for seed in (0, 1, 2)]
    directory = write_study(tmp_path / "s", runs[:1], [result_of(run, 0.5) for run in runs], title="t")
    assert len(StudySpec.read(directory).runs) == 1
    assert "2 stored results belong to no run of this study" in write_report(directory).read_text()


def test_a_broken_result_is_named_and_the_old_page_stays(tmp_path):
    directory = text_study(tmp_path / "text")
    before = write_report(directory).read_bytes()
    broken = next((directory / "results").iterdir())
    broken.write_text(broken.read_text()[:100])
    with pytest.raises(FileError, match=broken.name):
        write_report(directory)
    assert (directory / "report.html").read_bytes() == before


def test_no_study_no_page(tmp_path):
    with pytest.raises(FileError, match=r"study\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_studies_from_before_tasks_were_declared_have_the_same_page(tmp_path):
    recall = recall_study(tmp_path / "recall", settings=1, mixers=("attention", "hyena"))
    text = gap_study(tmp_path / "text", mixers=("attention", "hyena", "base_conv"), seeds=(0,))
    companion = companion_study(text, mixers=("attention", "hyena", "base_conv"))
    pages = [write_report(directory).read_bytes() for directory in (recall, text)]
    for directory in (recall, text, companion):
        as_before(directory, 3)
    assert [write_report(directory).read_bytes() for directory in (recall, text)] == pages


def test_the_same_files_give_the_same_page(tmp_path):
    directory = text_study(tmp_path / "text")
    assert write_report(directory).read_bytes() == write_report(directory).read_bytes()
