from __future__ import annotations

import csv
import json
import math
import os
import platform

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.files import FileError
from gatework.study.results import (
    RESULT_FORMAT,
    ResultStore,
    check_result,
    finite_json,
    no_metrics,
    write_table,
)
from tests.study.fakes import make_study, result_of

ROW = {"context": 64, "tokens_per_second": 800.5, "state_bytes": 1024}


@pytest.fixture
def run(tmp_path):
    return make_study(tmp_path / "traces").runs[0]


@pytest.fixture
def store(tmp_path):
    store = ResultStore(tmp_path)
    store.prepare()
    return store


def test_what_is_written_is_read(store, run):
    result = result_of(run.to_json())
    store.write(result)
    assert store.read(run.run_id) == result
    assert store.read_all() == {run.run_id: result}
    store.write(result | {"status": "failed", "message": "x", "metrics": None, "cost": None, "curve": None})
    assert store.read(run.run_id)["status"] == "failed"


@pytest.mark.parametrize("number", [2, 3])
def test_a_result_of_an_older_format_is_read(store, run, number):
    older = {key: value for key, value in result_of(run.to_json()).items() if key != "scaling"}
    decoding = {"measured": [ROW], "stopped": None}
    older |= {"format": f"gatework.result/{number}"} | ({"decoding": decoding} if number == 3 else {})
    path = store.path(run.run_id)
    path.write_text(json.dumps(older))
    found = store.read(run.run_id)
    assert found["format"] == RESULT_FORMAT
    assert found["scaling"] == ({"decoding": decoding} if number == 3 else {})
    path.write_text(json.dumps(older | {"format": RESULT_FORMAT}))
    with pytest.raises(FileError, match="it lacks scaling"):
        store.read(run.run_id)


def test_strays_of_a_killed_writer_are_deleted_and_nothing_else(store, tmp_path):
    dead, alive = (f"{platform.node()}.{process}.tmp" for process in (2**22 + 1, os.getppid()))
    strays = [store.folder / f".abc.json.{dead}", tmp_path / f".study.json.{dead}"]
    old = store.folder / ".abc.json.elsewhere.7.tmp"
    kept = [tmp_path / "notes.tmp", store.folder / "README.txt", store.folder / f".abc.json.{alive}"]
    kept.append(store.folder / ".def.json.elsewhere.7.tmp")  # somebody who shares the disk is writing
    for path in [*strays, old, *kept]:
        path.write_text("half")
    os.utime(old, (0, 0))
    store.prepare()
    assert not any(path.exists() for path in [*strays, old])
    assert all(path.exists() for path in kept)
    assert store.read_all() == {}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "wandb/9"},
            "format must be 'gatework.result/4' or 'gatework.result/2' or 'gatework.result/3', got 'wandb/9'",
        ),
        ({"run_id": "0" * 16}, "run_id must be the hash of its spec"),
        ({"status": "great"}, "status must be one of finished, diverged, failed, got 'great'"),
        ({"spec": {}}, "its spec is invalid: spec lacks"),
        ({"spec": None}, "its spec is invalid"),
        ({"message": 3}, "message must be text or null"),
        ({"metrics": None}, "a finished run must have metrics"),
        ({"metrics": {"quality": 1}}, "metrics must hold quality, loss, validation_quality, validation_loss"),
        (
            {"metrics": no_metrics() | {"quality": "good", "loss": 1, "slices": {}}},
            "'quality' must be a finite number or null",
        ),
        (
            {"metrics": no_metrics() | {"quality": True, "loss": 1, "slices": {}}},
            "'quality' must be a finite number or null",
        ),
        (
            {"metrics": no_metrics() | {"quality": 10**400, "loss": 1, "slices": {}}},
            "'quality' must be a finite number or null",
        ),
        (
            {"metrics": no_metrics() | {"quality": 1, "loss": math.nan, "slices": {}}},
            "'loss' must be a finite number or null",
        ),
        ({"metrics": no_metrics() | {"quality": 1, "loss": 1, "slices": []}}, "slices must be an object"),
        ({"cost": {"parameters": [1]}}, "cost: 'parameters' must be"),
        ({"curve": {}}, "curve must be a list or null"),
        ({"curve": [3]}, "curve must be an object"),
        ({"environment": "linux"}, "environment must be an object or null"),
        ({"scaling": []}, "scaling must be an object"),
        ({"scaling": {"decoding": []}}, "decoding must hold measured and stopped"),
        ({"scaling": {"decoding": {"measured": 3, "stopped": None}}}, "measured must be a list"),
        ({"scaling": {"decoding": {"measured": [], "stopped": 3}}}, "stopped must be text or null"),
        ({"scaling": {"decoding": {"measured": [ROW, {"context": 64}], "stopped": None}}}, "at each point"),
        ({"scaling": {"pixels": {"measured": [{"size": math.inf}], "stopped": None}}}, "finite number"),
        ({"decoding": {"measured": [{"context": 64}], "stopped": None}}, "decoding must hold context"),
    ],
)
def test_invalid_results_are_neither_written_nor_read(store, run, change, message):
    result = result_of(run.to_json()) | change
    with pytest.raises(ValueError, match=message):
        store.write(result)
    assert not store.path(run.run_id).exists()
    text = json.dumps(result)
    store.path(run.run_id).write_text(text)
    with pytest.raises(FileError) as caught:
        store.read_all()
    assert str(store.path(run.run_id)) in str(caught.value)
    assert "move it away to have that run repeated" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.path(run.run_id).read_text() == text


@pytest.mark.bad_input
def test_a_result_under_another_name_is_refused(store, run):
    store.write(result_of(run.to_json()))
    store.path(run.run_id).rename(store.path("f" * 16))
    with pytest.raises(FileError, match=f"ffff.json is the result of another run, {run.run_id}"):
        store.read_all()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """One store and one run for many examples of the same test."""
    folder = tmp_path_factory.mktemp("scratch")
    store = ResultStore(folder)
    store.prepare()
    return store, make_study(folder / "traces").runs[0]


@pytest.mark.bad_input
@settings(max_examples=80, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    lost=st.just(0) | st.integers(0, 10**6),
)
def test_a_damaged_file_is_a_typed_error_or_a_valid_result(scratch, flips, lost):
    store, run = scratch
    store.write(result_of(run.to_json()))
    path = store.path(run.run_id)
    content = bytearray(path.read_bytes())
    for position, byte in flips:
        content[position % len(content)] = byte
    path.write_bytes(content[: len(content) - lost % len(content)])
    message = f"{path}"
    try:
        check_result(store.read(run.run_id))
    except FileError as error:
        message = str(error)
    assert message.count(str(path)) == 1
    assert "\n" not in message


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.bad_input
@settings(max_examples=150, deadline=None)
@given(data=st.data(), value=values)
def test_a_replaced_value_is_an_error_or_can_be_stored(scratch, data, value):
    store, run = scratch
    result = result_of(run.to_json())
    key = data.draw(st.sampled_from(sorted(result)))
    if isinstance(result[key], dict) and result[key] and data.draw(st.booleans()):
        result[key][data.draw(st.sampled_from(sorted(result[key])))] = value
    else:
        result[key] = value
    try:
        check_result(result)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
        return
    store.write(finite_json(result))
    assert store.read(run.run_id) == finite_json(result)


def test_numbers_that_are_not_finite_become_null():
    value = {"a": math.nan, "b": [math.inf, {"c": -math.inf, "d": 1.5}], "e": "NaN", "f": True, "g": None}
    assert finite_json(value) == {
        "a": None,
        "b": [None, {"c": None, "d": 1.5}],
        "e": "NaN",
        "f": True,
        "g": None,
    }


def test_table_has_one_line_per_run_of_the_grid(tmp_path):
    study = make_study(tmp_path / "traces", deeds=("finish", 'a, "b"\nc'), sizes=[8, 16])
    results = {run.run_id: result_of(run.to_json()) for run in study.runs[:2]}
    results[study.runs[0].run_id]["scaling"] = {"decoding": {"measured": [ROW], "stopped": None}}
    write_table(tmp_path / "runs.csv", study, results)
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run_id"] for row in rows] == [run.run_id for run in study.runs]
    assert [row["status"] for row in rows] == ["finished", "finished", "missing", "missing"]
    assert (rows[0]["quality"], rows[0]["slice num_kv_pairs=4"], rows[0]["parameters"]) == (
        "0.08",
        "0.25",
        "10",
    )
    assert (rows[2]["quality"], rows[2]["setting deed"]) == ("", 'a, "b"\nc')
    assert rows[1]["width"] == "16"
    assert [row["decoding tokens_per_second at 64"] for row in rows] == ["800.5", "", "", ""]
