"""``gatework report``: the page of a stored study, or of two."""

from __future__ import annotations

import pytest

from gatework.cli import report
from gatework.cli.parser import Parser
from gatework.files import FileError
from tests.study.synthetic_studies import recall_study, text_study


def call(*argv: object) -> int:
    parser = Parser()
    report.add_arguments(parser, [])
    words = [str(word) for word in argv]
    return report.run(parser.parse_args(words), command=["gatework", "report", *words])


def test_it_writes_the_page_of_a_study_anew(tmp_path, capsys):
    study = text_study(tmp_path / "text")
    (study / "report.html").write_text("old")
    assert call(study) == 0
    assert capsys.readouterr().err == f"page: {study / 'report.html'}\n"
    assert "Token mixers on real text" in (study / "report.html").read_text()
    assert call(study, "--output", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text() == (study / "report.html").read_text()


def test_it_compares_two_studies(tmp_path, capsys):
    study = recall_study(tmp_path / "new", settings=1, mixers=("attention",))
    baseline = recall_study(tmp_path / "old", settings=1, mixers=("attention",), boost=0.5)
    before = sorted(path.name for path in baseline.iterdir())
    assert call(study, "--against", baseline) == 0
    assert capsys.readouterr().err == f"page: {study / 'comparison.html'}\n"
    assert call(study, "--against", baseline, "--output", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert page == (study / "comparison.html").read_text()
    assert "A: new · B: old" in page
    assert sorted(path.name for path in baseline.iterdir()) == before


@pytest.mark.bad_input
def test_what_is_wrong_is_one_error(tmp_path):
    study = text_study(tmp_path / "text")
    with pytest.raises(FileError, match=r"holds no study: it has no study\.json"):
        call(tmp_path)
    with pytest.raises(FileError, match="only studies of one task can be compared"):
        call(study, "--against", recall_study(tmp_path / "recall", settings=1, mixers=("attention",)))
    with pytest.raises(FileError, match="must be in a directory that exists"):
        call(study, "--output", tmp_path / "no" / "page.html")
    assert not list(tmp_path.rglob("*.html"))
