from __future__ import annotations

import io
import sys

import pytest

from gatework.study.progress import Progress
from tests.study.fakes import make_study, result_of


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "traces", seeds=[0, 1, 2, 3])


def show(study, *, shown=True):
    runs = study.runs
    progress = Progress(study, ["finished"], shown=shown)
    progress.running(list(runs))
    progress.ended(runs[0], result_of(runs[0].to_json()))
    failure = {"status": "failed", "message": "Traceback\nRuntimeError: no cheese", "metrics": None}
    progress.ended(runs[1], result_of(runs[1].to_json()) | failure)
    progress.running([])
    progress.close()


def test_lines_where_there_is_no_terminal(study, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    show(study)
    assert sys.stderr.getvalue().splitlines() == [
        "[2/4] finished attention · finish · width 8 · lr 0.01 · seed 0: accuracy 0.08",
        "[3/4] failed attention · finish · width 8 · lr 0.01 · seed 1: RuntimeError: no cheese",
    ]


def test_bar_on_a_terminal_names_counts_mixer_and_failures(study, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    show(study)
    text = sys.stderr.getvalue()
    assert "1/4" in text
    assert "3/4" in text
    assert "1 finished · attention" in text
    assert "1 failed, 2 finished" in text
    assert "seed 1: RuntimeError: no cheese\n" in text
    assert "seed 0" not in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_silence(study, monkeypatch, capsys, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    show(study, shown=False)
    assert sys.stderr.getvalue() == ""
    assert capsys.readouterr().out == ""
