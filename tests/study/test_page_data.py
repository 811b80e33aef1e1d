from __future__ import annotations

import json

import pytest

from gatework.study.page_data import page_data
from gatework.study.results import ResultStore
from gatework.study.spec import StudySpec
from gatework.study.summary import summarise
from tests.study.synthetic_studies import BITS, recall_study, result_of, run_spec, text_study, write_study


def data_of(directory):
    return page_data(summarise(StudySpec.read(directory), ResultStore(directory).read_all()))


@pytest.fixture(scope="module")
def recall(tmp_path_factory):
    return data_of(recall_study(tmp_path_factory.mktemp("page") / "recall"))


def test_everything_is_there(recall):
    assert len(recall["series"]) == 8
    assert len(recall["cells"]) == 8 * 2 * 2
    assert len(recall["runs"]) == 8 * 2 * 2 * 2
    assert recall["series"][1]["about"] == "base_conv(kernel_size=3) → attention(num_heads=1)"
    json.dumps(recall, allow_nan=False)


def test_the_setting_shown_first_separates_the_mixers_most(recall):
    def spread(setting):
        means = [cell["quality"][0] for cell in recall["cells"] if cell["setting"] == setting]
        return max(means) - min(means)

    assert spread(recall["clearest_setting"]) == max(spread(0), spread(1))


def test_axes_hold_every_point(recall):
    for cost, axis in recall["axes"].items():
        low, high = (10**bound for bound in axis["range"])
        unknown = {cell["series"] for cell in recall["cells"] if cell[cost] is None}
        assert unknown == ({6} if cost == "published_state" else set())  # nobody published that of base_conv
        assert all(low < cell[cost] < high for cell in recall["cells"] if cell[cost] is not None)
        assert len(axis["ticks"]) == len(axis["labels"]) >= 2
        assert all(low <= tick <= high for tick in axis["ticks"])
    assert recall["axes"]["state"]["labels"][0].endswith("KiB")
    low, high = recall["quality"]["range"]
    assert low < 0 < 1 < high


def test_a_point_says_what_it_is(recall):
    cell = next(cell for cell in recall["cells"] if cell["diverged"])
    assert cell["hover"][:2] == ["hyena, width 64", "N=64, 4 pairs"]
    assert "1 of 2 seeds diverged" in cell["hover"]
    assert any(line.startswith("accuracy 0.") and "one seed" in line for line in cell["hover"])
    assert any(line.endswith("tokens/s") for line in cell["hover"])
    assert any(line.startswith("training compute ") and line.endswith("FLOP") for line in cell["hover"])
    assert not any("standard deviation" in line for line in cell["hover"])
    pair = next(cell for cell in recall["cells"] if not cell["diverged"])
    assert any(line.startswith("standard deviation 0.0") for line in pair["hover"])


def test_every_number_of_a_run_is_there(recall):
    for run in recall["runs"]:
        assert run["values"].keys() == run["texts"].keys()
    values = recall["runs"][0]["values"]
    # The synthetic study draws test quality around validation quality: near it, and not the same number.
    assert values["quality"] == pytest.approx(values["validation_quality"], abs=0.05)
    assert values["quality"] != values["validation_quality"]
    assert values["training_flops"] == values["flops_per_token"] * values["training_tokens"]
    assert recall["runs"][0]["texts"]["training_flops"].endswith("FLOP")


def test_generation_is_there_as_far_as_it_was_measured(recall):
    assert recall["decode_contexts"] == [64, 256, 1024]
    attention, hyena = recall["cells"][0], next(cell for cell in recall["cells"] if cell["series"] == 5)
    assert [point["context"] for point in attention["decoding"]] == [64, 256, 1024]
    assert [point["context"] for point in hyena["decoding"]] == [64]
    point = attention["decoding"][1]
    assert point["carried"] == 1024 * 256
    assert point["speed"][1] <= point["speed"][0] <= point["speed"][2]
    assert point["hover"][2] == "context of 256 tokens"
    values = recall["runs"][0]["values"]
    assert values["decode_64"] == values["tokens_per_second"] / 30
    assert next(run for run in recall["runs"] if run["series"] == 5)["texts"]["decode_1024"] == "–"
    for name, what in (("context", "context"), ("carried", "carried")):
        low, high = (10**bound for bound in recall["decoding_axes"][name]["range"])
        assert all(low < point[what] < high for cell in recall["cells"] for point in cell["decoding"])


def test_published_curves_are_there_where_they_belong(recall, tmp_path):
    curves = {(curve["series"], curve["setting"]): curve for curve in recall["published"]}
    assert set(curves) == {(0, 0), (5, 0)}  # attention and hyena, N=64 with 4 pairs
    assert curves[5, 0]["widths"] == [64, 128, 256, 512]
    assert curves[5, 0]["values"] == [0.52, 0.75, 0.85, 0.87]
    assert data_of(text_study(tmp_path / "text"))["published"] == []


def test_a_failed_run_keeps_its_row_and_message(recall):
    run = next(run for run in recall["runs"] if run["status"] == "failed")
    assert run["message"] == "RuntimeError: out of memory"
    assert run["values"]["quality"] is None
    assert run["texts"]["quality"] == "–"
    assert run["curve"]["step"] == []
    assert json.loads(run["spec"])["mixer"] == "mamba2"


def test_the_direction_is_on_the_axis(tmp_path):
    data = data_of(text_study(tmp_path / "text"))
    assert data["quality"]["title"] == "bits per byte (lower is better)"
    assert data["widths"] == [128]
    low, high = data["quality"]["range"]
    assert 2 < low < 2.31 < 2.95 < high < 4


@pytest.mark.parametrize("ended", [False, True])
def test_a_study_without_numbers_has_axes(tmp_path, ended):
    run = run_spec("text", "source", "attention", 32, 0.1, 0)
    results = [result_of(run, 2.0, status="failed", message="boom")] if ended else []
    data = data_of(write_study(tmp_path / "s", [run], results, quality=BITS, title="t"))
    assert data["cells"][0]["quality"] is None
    assert data["quality"]["range"][0] < data["quality"]["range"][1]
    json.dumps(data, allow_nan=False)


def test_a_cost_of_zero_does_not_break_a_log_axis(tmp_path):
    run = run_spec("recall", "easy", "attention", 32, 0.1, 0)
    result = result_of(run, 0.5)
    result["cost"]["state_bytes"] = 0
    data = data_of(write_study(tmp_path / "s", [run], [result], title="t"))
    assert data["cells"][0]["state"] is None
    assert data["runs"][0]["texts"]["state_bytes"] == "0 B"
