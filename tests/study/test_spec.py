from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.files import FileError
from gatework.study.spec import Quality, RunSpec, StudySpec, canonical_json, spec_hash
from gatework.tasks.declaration import Axis, Declaration, Unit
from gatework.tasks.language import LANGUAGE

SPEC = {
    "task": "recall",
    "setting": {"length": 64, "num_kv_pairs": 4},
    "setting_name": "N=64, 4 pairs",
    "candidate": "base_conv+attention",
    "definition": [{"name": "base_conv", "kernel_size": 3}, {"name": "attention", "num_heads": 1}],
    "size": 32,
    "learning_rate": 0.003,
    "seed": 0,
    "training": {"batch_size": 64, "steps": 100},
    "model": {"channel_mixer": "identity"},
}
#: The same as formats 2 and 3 wrote it.
OLD_NAMES = {"candidate": "mixer", "definition": "layers", "size": "width"}
OLD_SPEC = {OLD_NAMES.get(name, name): value for name, value in SPEC.items()}
WORDS = LANGUAGE.to_json()
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def study(**changes):
    content = {
        "name": "demo",
        "task": "recall",
        "command": "gatework compare recall",
        "title": "Recall",
        "quality": Quality(name="accuracy", better="higher", chance=0.01, range=(0.0, 1.0)),
        "declaration": LANGUAGE,
        "runs": [RunSpec.from_json(SPEC), RunSpec.from_json(SPEC | {"seed": 1})],
        "notes": ["two seeds"],
    }
    return StudySpec(**(content | changes))


def test_the_id_of_a_run_never_changes():
    # Another value here means that every stored study would be run again.
    assert RunSpec.from_json(SPEC).run_id == "cac4ceffdddd88b4"
    assert RunSpec.from_json(OLD_SPEC) == RunSpec.from_json(SPEC)
    text = json.dumps(OLD_SPEC, sort_keys=True, separators=(",", ":"), allow_nan=False)
    assert RunSpec.from_json(SPEC).run_id == hashlib.sha256(text.encode()).hexdigest()[:16]


@settings(max_examples=60, deadline=None)
@given(setting=st.dictionaries(st.text(), plain, max_size=4), seed=st.integers(0, 2**63), data=st.data())
def test_identity_is_content(setting, seed, data):
    run = RunSpec.from_json(SPEC | {"setting": setting, "seed": seed})
    keys = data.draw(st.permutations(list(run.to_json())))
    again = RunSpec.from_json(json.loads(json.dumps({key: run.to_json()[key] for key in keys})))
    assert again == run
    assert again.run_id == run.run_id == spec_hash(run.identity())
    assert RunSpec.from_json(run.to_json() | {"seed": seed + 1}).run_id != run.run_id


def test_equal_numbers_and_sequences_are_one_run():
    run = RunSpec.from_json(SPEC)
    assert replace(run, learning_rate=3e-3).run_id == run.run_id
    assert replace(run, definition=tuple(run.definition)).run_id == run.run_id
    assert replace(run, learning_rate=1.0).to_json()["learning_rate"] == 1.0


def test_what_is_measured_is_kept_and_decides_nothing():
    timed = RunSpec.from_json(SPEC | {"measure": {"decode_contexts": [64, 256]}})
    assert timed.run_id == RunSpec.from_json(SPEC).run_id
    assert timed.to_json()["measure"] == {"decode_contexts": [64, 256]}
    assert RunSpec.from_json(timed.to_json()) == timed
    assert RunSpec.from_json(OLD_SPEC | {"decode_contexts": [64, 256]}) == timed
    assert "measure" not in RunSpec.from_json(SPEC).to_json()


def test_later_changes_by_the_caller_do_not_reach_the_run():
    setting = {"length": 64}
    run = replace(RunSpec.from_json(SPEC), setting=setting)
    before = run.run_id
    setting["length"] = 128
    assert run.run_id == spec_hash(run.identity()) == before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 8.5}, TypeError, "size must be an integer, got 8.5"),
        ({"size": True}, TypeError, "size must be an integer, got True"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be positive, got nan"),
        ({"learning_rate": 10**400}, ValueError, "learning_rate must be finite"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number, got 'fast'"),
        ({"candidate": ""}, ValueError, "candidate must not be empty"),
        ({"task": 3}, TypeError, "task must be text"),
        ({"definition": []}, ValueError, "definition must say what is built"),
        ({"definition": "attention"}, TypeError, "definition must be an object, or a list"),
        ({"definition": [{"num_heads": 1}]}, TypeError, "object with a 'name'"),
        ({"setting": [1]}, TypeError, "setting must be a mapping"),
        ({"setting": {"a": float("inf")}}, ValueError, "setting must be plain, finite JSON"),
        ({"setting": {"a": object()}}, TypeError, "setting must be plain, finite JSON"),
        ({"training": {4: 1}}, TypeError, "keys must be text, not 4"),
        ({"measure": [64]}, TypeError, r"measure must be a mapping, got \[64\]"),
        ({"measure": {"sizes": 64}}, TypeError, "sizes must be a list, got 64"),
        ({"measure": {"sizes": ["64"]}}, TypeError, "sizes must be an integer, got '64'"),
        ({"measure": {"sizes": [0]}}, ValueError, "sizes must be at least 1, got 0"),
        ({"measure": {"sizes": [64, 64]}}, ValueError, "sizes must grow, got 64 after 64"),
        ({"colour": "red"}, ValueError, "unknown keys 'colour'"),
    ],
)
def test_bad_runs_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        RunSpec.from_json(SPEC | change)


@pytest.mark.bad_input
def test_what_is_no_spec_is_refused():
    with pytest.raises(TypeError, match="spec must be an object, got 3"):
        RunSpec.from_json(3)
    with pytest.raises(ValueError, match="spec lacks definition, size"):
        RunSpec.from_json({key: SPEC[key] for key in SPEC if key not in ("definition", "size")})
    with pytest.raises(ValueError, match="spec lacks layers, width"):
        RunSpec.from_json({key: OLD_SPEC[key] for key in OLD_SPEC if key not in ("layers", "width")})


def test_a_study_survives_its_file(tmp_path):
    first = study()
    (tmp_path / "study.json").write_text(json.dumps(first.to_json()))
    again = StudySpec.read(tmp_path)
    assert again.to_json() == first.to_json()
    assert again.quality == first.quality
    assert [run.run_id for run in again.runs] == [run.run_id for run in first.runs]
    assert StudySpec.from_json(study(quality=Quality("bits", "lower")).to_json()).quality.range is None


@pytest.mark.parametrize("number", [2, 3])
def test_a_study_from_before_tasks_were_declared_is_read(tmp_path, number):
    older = {name: value for name, value in study().to_json().items() if name != "declaration"}
    older |= {"format": f"gatework.study/{number}", "runs": [OLD_SPEC, OLD_SPEC | {"seed": 1}]}
    (tmp_path / "study.json").write_text(json.dumps(older))
    found = StudySpec.read(tmp_path)
    assert found.runs == study().runs
    assert found.declaration == LANGUAGE


def test_a_study_of_a_task_that_is_not_installed_keeps_its_words(tmp_path):
    words = Declaration(Axis("model"), Axis("size", title="pixels"), Unit("image"))
    runs = [RunSpec.from_json(SPEC | {"task": "pictures"})]
    first = study(task="pictures", runs=runs, declaration=words, budget_kind="images")
    (tmp_path / "study.json").write_text(json.dumps(first.to_json()))
    assert StudySpec.read(tmp_path).declaration == words


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "gatework.study/9"},
            "format must be 'gatework.study/4' or 'gatework.study/2' or 'gatework.study/3', got 'gatework",
        ),
        ({"runs": []}, "runs must hold at least one run"),
        ({"runs": [SPEC, SPEC]}, "runs must differ, got twice: base_conv"),
        ({"runs": [SPEC | {"task": "text"}]}, "task 'recall', got 'text'"),
        ({"runs": {}}, "runs must be a list"),
        ({"runs": [SPEC | {"size": None}]}, "size must be an integer"),
        ({"notes": "one"}, "notes must be a list"),
        ({"notes": [1]}, "notes must be a list of texts"),
        ({"plugins": "mine"}, "plugins must be a list"),
        ({"budget_kind": "luck"}, "budget_kind must be one of steps, tokens, flops, seconds, got 'luck'"),
        ({"title": None}, "title must be text"),
        ({"quality": None}, "quality must be an object"),
        ({"quality": {"name": "accuracy"}}, "quality lacks better, chance, range, unit"),
        ({"extra": 1}, "unknown keys 'extra'"),
        ({"declaration": None}, "declaration must be an object with candidates, sizes"),
        (
            {"declaration": WORDS | {"unit": {"name": "token"}}},
            "declaration.unit must be an object with name",
        ),
        ({"declaration": WORDS | {"lean": 3}}, "declaration.lean must be of type str, got 3"),
        ({"declaration": WORDS | {"lean": "luck"}}, "lean must be one of parameters, state_bytes"),
        ({"declaration": WORDS | {"sections": "all"}}, "declaration.sections must be a list"),
    ],
)
def test_a_broken_study_file_is_refused(tmp_path, change, message):
    (tmp_path / "study.json").write_text(json.dumps(study().to_json() | change))
    with pytest.raises(FileError, match=message) as caught:
        StudySpec.read(tmp_path)
    assert str(tmp_path / "study.json") in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better": "bigger"}, "better must be one of higher, lower, got 'bigger'"),
        ({"name": " "}, "name must not be empty, got ' '"),
        ({"unit": None}, "unit must be text"),
        ({"range": [1, 0]}, "range must be two growing numbers"),
        ({"range": [0]}, "range must be two growing numbers"),
        ({"range": 5}, "not iterable"),
        ({"chance": "half"}, "chance must be a number, got 'half'"),
    ],
)
def test_a_broken_quality_is_refused(change, message):
    value = study().to_json()
    value["quality"] = {
        "name": "accuracy",
        "unit": "",
        "better": "higher",
        "chance": None,
        "range": None,
    } | change
    with pytest.raises((TypeError, ValueError), match=message):
        StudySpec.from_json(value)


@pytest.mark.bad_input
def test_a_directory_without_a_study(tmp_path):
    with pytest.raises(FileError, match=r"holds no study: it has no study\.json"):
        StudySpec.read(tmp_path)
    with pytest.raises(ValueError, match="format must be"):
        StudySpec.from_json([])


def test_canonical_json():
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"\\u00fc","b":[1,2.5]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
