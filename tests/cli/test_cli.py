"""The command line: light, clear about mistakes, and the main job end to end on a tiny grid."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gatework.cli import main

TINY = [
    "--mixers=[attention,base_conv+attention]",
    "--widths=[8]",
    "--seeds=[0]",
    "--training.steps=4",
    "--training.batch_size=8",
    "--training.evaluations=2",
    "--workers=2",
]
RECALL = ["--setting.input_seq_len=16", "--setting.num_kv_pairs=2", "--setting.vocab_size=32"]
FEW = ["--setting.num_train=64", "--setting.num_test=16"]


@pytest.fixture(scope="module")
def recall_study(tmp_path_factory, warm_workers):
    """A finished study of two runs."""
    directory = tmp_path_factory.mktemp("recall") / "study"
    code = main(["compare", "recall", *TINY, *RECALL, *FEW, f"--output={directory}"])
    return code, directory


def test_compare_makes_results_table_and_page(recall_study):
    code, directory = recall_study
    assert code == 0
    study = json.loads((directory / "study.json").read_text())
    assert [run["candidate"] for run in study["runs"]] == ["attention", "base_conv+attention"]
    results = [json.loads(path.read_text()) for path in (directory / "results").glob("*.json")]
    assert [result["status"] for result in results] == ["finished"] * 2
    for result in results:
        assert [point["step"] for point in result["curve"]] == [2, 4]
        assert 0 <= result["metrics"]["quality"] <= 1
        assert result["metrics"]["slices"]["num_kv_pairs=2"] == result["metrics"]["quality"]
        assert all(value > 0 for value in result["cost"].values())
    assert "base_conv+attention" in (directory / "report.html").read_text()
    assert (directory / "runs.csv").read_text().count("\n") == 3


def test_the_same_command_repeats_nothing(recall_study, capsys):
    _, directory = recall_study
    before = {path: path.stat().st_mtime_ns for path in (directory / "results").iterdir()}
    assert main(["compare", "recall", *TINY, *RECALL, *FEW, f"--output={directory}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (directory / "results").iterdir()} == before
    assert "0 executed now" in capsys.readouterr().err


def test_text_on_a_folder_of_ones_own(tmp_path, warm_workers):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index in range(60):
        (corpus / f"{index}.txt").write_text(f"document {index} says hello to all readers. " * 20)
    config = tmp_path / "study.yaml"
    config.write_text(
        f"""
        mixers:
          hybrid:
            layers: [base_conv, {{name: attention, num_heads: 2}}]
            learning_rates: [0.01]
        widths: [8]
        seeds: [3]
        setting: {{corpus: {corpus}, length: 32, num_test: 4}}
        training: {{steps: 3, batch_size: 4, evaluations: 1}}
        """
    )
    directory = tmp_path / "study"
    assert main(["compare", "text", f"--config={config}", "--workers=2", f"--output={directory}"]) == 0
    (result,) = [json.loads(path.read_text()) for path in (directory / "results").glob("*.json")]
    assert 0 < result["metrics"]["quality"] < 20
    assert result["spec"]["learning_rate"] == 0.01
    notes = json.loads((directory / "study.json").read_text())["notes"]
    assert any("sha256" in note and "60 documents" in note for note in notes)


def test_divergence_is_a_result(tmp_path, warm_workers):
    directory = tmp_path / "study"
    options = ["--mixers=[base_conv]", "--learning_rates=[1e30]", *TINY[1:], *RECALL, *FEW]
    assert main(["compare", "recall", *options, f"--output={directory}"]) == 0
    (result,) = [json.loads(path.read_text()) for path in (directory / "results").glob("*.json")]
    assert result["status"] == "diverged"
    assert "at step" in result["message"]
    assert result["metrics"]["quality"] is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compar"], "did you mean 'compare'"),
        (["compare", "recal"], "did you mean 'recall'"),
        (["compare", "recall", "--mixers=[atention]"], "did you mean 'attention'"),
        (["compare", "recall", "--mixers={}"], "at least one sequence mixer"),
        (["compare", "recall", "--setting.input_seq_len=15"], "input_seq_len"),
        (["compare", "recall", "--setting.vocab_size=20"], "vocab_size"),
        (["compare", "recall", "--setting.num_kv_pairs=40"], "num_kv_pairs"),
        (["compare", "recall", "--setting.num_pairs=4"], "did you mean 'num_kv_pairs'"),
        (["compare", "recall", "--setting.variant=mqra"], "did you mean 'mqar'"),
        (["compare", "recall", "--training.stepz=4"], "did you mean 'steps'"),
        (["compare", "recall", "--training.steps=0"], "training.steps"),
        (["compare", "recall", "--model.channel_mixers=mlp"], "did you mean 'channel_mixer'"),
        (["compare", "recall", "--widths=[]"], "widths"),
        (
            ["compare", "recall", "--widths=[33]", "--mixers={a: [{name: attention, num_heads: 2}]}"],
            "num_heads",
        ),
        (["compare", "text", "--setting.corpus=/nowhere"], "'/nowhere' does not exist"),
        (["compare", "text", "--setting.length=99999999"], "length must be below"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("gatework: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.bad_input
def test_a_folder_without_text_is_named(tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "photo.bin").write_bytes(b"\0\1\2")
    assert main(["compare", "text", f"--setting.corpus={tmp_path / 'corpus'}"]) == 2
    assert str(tmp_path / "corpus") in capsys.readouterr().err


@pytest.mark.bad_input
def test_a_corrupt_result_is_named_and_kept(recall_study, capsys, tmp_path):
    import shutil

    _, finished = recall_study
    directory = tmp_path / "study"
    shutil.copytree(finished, directory)
    victim = next((directory / "results").glob("*.json"))
    victim.write_text(victim.read_text()[:50])
    code = main(["compare", "recall", *TINY, *RECALL, *FEW, f"--output={directory}"])
    error = capsys.readouterr().err
    assert code != 0
    assert victim.name in error
    assert len(victim.read_text()) == 50


def test_help_and_list_answer_from_a_shell():
    for arguments, expected in ((["--help"], "usage: gatework"), (["list"], "gated_linear_attention")):
        done = subprocess.run(
            [sys.executable, "-m", "gatework", *arguments], capture_output=True, text=True, check=True
        )
        assert expected in done.stdout
        assert done.stderr == ""


def test_a_failed_run_fails_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gatework.study.compare.EXECUTE", "tests.study.fakes:main")  # which takes no spec
    directory = tmp_path / "study"
    assert main(["compare", "recall", *TINY, *RECALL, *FEW, f"--output={directory}"]) == 1
    assert "2 failed" in capsys.readouterr().err
    assert (directory / "report.html").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("option", ["mixers", "setting", "settings", "training", "model"])
def test_no_option_imports_a_class(option, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text("raise SystemExit('sprung')\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    bait = {"class_path": "trap.Trap", "init_args": {}}
    for value in (bait, {"x": bait}, {"x": json.dumps(bait)}):
        config = tmp_path / "study.yaml"
        config.write_text(json.dumps({option: value}))
        for arguments in ([f"--config={config}"], [f"--{option}={json.dumps(value)}"]):
            assert main(["compare", "recall", *arguments]) == 2
            assert capsys.readouterr().err.startswith("gatework: error: ")
    assert "trap" not in sys.modules
