"""One process compiles a kernel, others wait for it; where nothing can be locked, nobody waits."""

from __future__ import annotations

import threading

import pytest

from gatework.ops.cpu import compiled


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_only_one_compiles_a_function(folder):
    order, begun = [], threading.Event()

    def compile_second():
        begun.set()
        with compiled._one_process_at_a_time("forward_1"):
            order.append("second")

    thread = threading.Thread(target=compile_second)
    with compiled._one_process_at_a_time("forward_1"):
        thread.start()
        begun.wait()
        with compiled._one_process_at_a_time("backward_1"):
            order.append("another function")
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["another function", "first", "second"]


def test_a_failed_compilation_lets_the_next_one_try(folder):
    with pytest.raises(RuntimeError, match="no kernel"), compiled._one_process_at_a_time("forward_2"):
        raise RuntimeError("no kernel")
    with compiled._one_process_at_a_time("forward_2"):
        pass


def test_without_a_place_for_locks_nobody_waits(folder, monkeypatch):
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(folder / "absent" / "folder"))
    (folder / "absent").write_text("a file")
    with compiled._one_process_at_a_time("forward_3"):
        pass


def test_nobody_waits_for_ever(folder, monkeypatch):
    monkeypatch.setattr(compiled, "_LONGEST_WAIT", 0.1)
    with compiled._one_process_at_a_time("forward_4"), compiled._one_process_at_a_time("forward_4"):
        pass
