"""Plugins: modules of the user's own, by name or by entry point, in this process and in workers."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing

import pytest

import gatework
from gatework import registry, tasks
from gatework.cli import main
from gatework.files import FileError
from gatework.study.executor import LocalExecutor
from gatework.study.worker import Setup
from tests.study.fakes import EXECUTE, make_study, wait_until

MIXER = "import gatework\ngatework.register_mixer('{name}', 'somewhere:Mine', summary='of mine')\n"


@pytest.fixture(autouse=True)
def _registries(monkeypatch, tmp_path):
    """Fresh registries, and an own current directory."""
    monkeypatch.setattr(registry.mixers, "_MIXERS", dict(registry.mixers._MIXERS))
    monkeypatch.setattr(registry.plugins, "_loaded_plugins", {})
    monkeypatch.setattr(registry.plugins, "_loaded_entry_points", set())
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith(("plug_", "cheese_"))]:
        del sys.modules[name]


def write(tmp_path, name, text):
    (tmp_path / f"{name}.py").write_text(text)


def test_a_module_of_the_current_directory(tmp_path):
    write(
        tmp_path, "plug_a", MIXER.format(name="mine") + "gatework.register_task('sorting', 'somewhere:Sort')"
    )
    registry.load_plugins(["plug_a"])
    assert "mine" in gatework.list_mixers()
    assert "sorting" in tasks.list_tasks()
    assert registry.loaded_plugins() == ["plug_a"]
    registry.load_plugins(["plug_a"])  # a second time is no mistake
    assert registry.loaded_plugins() == ["plug_a"]


def test_a_module_that_was_imported_before_has_registered_already(tmp_path, monkeypatch):
    write(tmp_path, "plug_b", MIXER.format(name="mine"))
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("plug_b")
    registry.load_plugins(["plug_b"])
    assert registry.loaded_plugins() == ["plug_b"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"plugin 'plug_c' cannot be found: no module 'plug_c' in .* or installed"),
        ("import no_such_thing", r"plugin 'plug_c' cannot be imported: ModuleNotFoundError: No module named"),
        ("\n\nraise RuntimeError('no\\ncheese')", r"imported: RuntimeError: no cheese \(.*plug_c\.py:3\)"),
        ("def broken(", r"plugin 'plug_c' cannot be imported: SyntaxError"),
        ("raise SystemExit(3)", r"plugin 'plug_c' cannot be imported: SystemExit: 3"),
        (MIXER.format(name="attention"), r"ValueError: mixer 'attention' is already registered"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, text, message):
    if text is not None:
        write(tmp_path, "plug_c", text)
    with pytest.raises(ValueError, match=message) as caught:
        registry.load_plugins(["plug_c"])
    assert "\n" not in str(caught.value)
    sys.modules.pop("plug_c", None)
    assert main(["compare", "recall", "--plugin", "plug_c"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gatework: error: plugin 'plug_c'")
    assert error.count("\n") == 1
    with pytest.raises(TypeError, match="plugins must be a list of module names, got 'plug_c'"):
        registry.load_plugins("plug_c")


def test_a_file_cannot_name_a_plugin(tmp_path, capsys):
    write(tmp_path, "plug_d", "raise RuntimeError('executed')")
    (tmp_path / "recipe.yaml").write_text("plugin: [plug_d]\n")
    assert main(["compare", "recall", "--config", "recipe.yaml"]) == 2
    assert "name it on the command line with --plugin, never in a file" in capsys.readouterr().err


def install(tmp_path, monkeypatch, module):
    """A package whose metadata name ``module`` as a plugin."""
    folder = tmp_path / "site"
    info = folder / "cheese-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cheese\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gatework.plugins]\ncheese = {module}\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_an_entry_point_is_loaded_when_a_name_is_missed(tmp_path, monkeypatch):
    folder = install(tmp_path, monkeypatch, "cheese_mixers")
    (folder / "cheese_mixers.py").write_text(MIXER.format(name="gouda"))
    registry.mixer_entry("attention")
    assert "cheese_mixers" not in sys.modules
    assert registry.mixer_entry("gouda").summary == "of mine"


def test_list_shows_what_entry_points_bring(tmp_path, monkeypatch, capsys):
    folder = install(tmp_path, monkeypatch, "cheese_list")
    (folder / "cheese_list.py").write_text(MIXER.format(name="gouda"))
    assert main(["list", "mixers"]) == 0
    assert "gouda" in capsys.readouterr().out


@pytest.mark.bad_input
def test_a_broken_entry_point_names_its_package(tmp_path, monkeypatch):
    folder = install(tmp_path, monkeypatch, "cheese_broken")
    (folder / "cheese_broken.py").write_text("raise RuntimeError('mouldy')")
    with pytest.raises(ValueError, match=r"plugin 'cheese_broken' of cheese cannot be loaded: .*mouldy"):
        registry.mixer_entry("gouda")


def test_workers_load_the_plugins_before_their_first_run(tmp_path):
    write(tmp_path, "plug_e", MIXER.format(name="mine"))
    registry.load_plugins(["plug_e"])
    study = make_study(tmp_path / "traces")
    setup = Setup(EXECUTE, plugins=("plug_e",), task="recall", candidates={"mine": [{"name": "mine"}]})
    with closing(LocalExecutor(setup, num_workers=1)) as executor:
        executor.submit(study.runs[0])
        ended = []
        wait_until(lambda: ended.extend(executor.poll(1.0)) or ended)
    assert ended[0].result["status"] == "finished"


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (
            Setup(EXECUTE, task="recall", candidates={"mine": [{"name": "mine"}]}),
            "mixer 'mine' is registered in the process of the study but not in",
        ),
        (Setup(EXECUTE, task="sorting"), "task 'sorting' is registered in the process of the study but not"),
        (Setup(EXECUTE, plugins=("plug_f",)), "workers cannot start: plugin 'plug_f' cannot be found"),
    ],
)
def test_workers_say_what_they_lack(tmp_path, setup, message):
    study = make_study(tmp_path / "traces")
    with closing(LocalExecutor(setup, num_workers=1)) as executor:
        executor.submit(study.runs[0])
        with pytest.raises(FileError, match=message) as caught:
            wait_until(lambda: executor.poll(1.0))
    assert "\n" not in str(caught.value)


def test_plugins_are_found_by_the_installed_command(tmp_path):
    write(tmp_path, "plug_g", "raise RuntimeError('found it')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gatework", "compare", "recall", "--plugin=plug_g"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 2
    assert "found it" in done.stderr
