from __future__ import annotations

import json

import pytest

from gatework.study.page_data import page_data
from gatework.study.report import read_summary
from gatework.study.sections import page_sections
from tests.study.synthetic_studies import BITS, recall_study, result_of, run_spec, text_study, write_study


def data_of(directory):
    summary = read_summary(directory)
    return page_data(summary, [kind(summary) for kind in page_sections(summary.declared)])


@pytest.fixture(scope="module")
def recall(tmp_path_factory):
    return data_of(recall_study(tmp_path_factory.mktemp("page") / "recall"))


def test_everything_is_there(recall):
    assert len(recall["series"]) == 8
    assert len(recall["cells"]) == 8 * 2 * 2
    assert len(recall["sections"]["runs"]["rows"]) == 8 * 2 * 2 * 2
    assert set(recall["sections"]) == {"quality", "costs", "scaling", "curves", "runs"}
    assert recall["series"][1]["about"] == "base_conv(kernel_size=3) → attention(num_heads=1)"
    json.dumps(recall, allow_nan=False)


def test_the_setting_shown_first_separates_the_mixers_most(recall):
    def spread(setting):
        means = [cell["quality"][0] for cell in recall["cells"] if cell["setting"] == setting]
        return max(means) - min(means)

    assert spread(recall["clearest_setting"]) == max(spread(0), spread(1))


def test_axes_hold_every_point(recall):
    costs = recall["sections"]["costs"]["panels"]
    assert list(costs) == ["state", "published_state", "training_flops", "activation", "rate"]
    for name, cost in costs.items():
        axis, values = cost["axis"], cost["values"]
        low, high = (10**bound for bound in axis["range"])
        unknown = {
            cell["series"] for cell, value in zip(recall["cells"], values, strict=True) if value is None
        }
        assert unknown == ({6} if name == "published_state" else set())  # nobody published that of base_conv
        assert all(low < number < high for value in values if value is not None for number in value)
        assert len(axis["ticks"]) == len(axis["labels"]) >= 2
        assert all(low <= tick <= high for tick in axis["ticks"])
    assert costs["state"]["axis"]["labels"][0].endswith("KiB")
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
    rows = recall["sections"]["runs"]["rows"]
    for run in rows:
        assert run["values"].keys() == run["texts"].keys() == rows[0]["values"].keys()
    values = rows[0]["values"]
    # The synthetic study draws test quality around validation quality: near it, and not the same number.
    assert values["quality"] == pytest.approx(values["validation_quality"], abs=0.05)
    assert values["quality"] != values["validation_quality"]
    assert values["training_flops"] == values["flops_per_token"] * values["training_tokens"]
    assert rows[0]["texts"]["training_flops"].endswith("FLOP")
    known = {*rows[0]["values"], "mixer", "setting", "status", "run_id", "layers", "message"}
    for columns in ("columns", "facts"):
        assert {key for key, _ in recall["sections"]["runs"][columns]} <= known
    assert set(recall["sections"]["runs"]["file"]) <= known


def test_generation_is_there_as_far_as_it_was_measured(recall):
    (figure,) = recall["sections"]["scaling"]["figures"]
    assert (figure["key"], figure["points"]) == ("decoding", [64, 256, 1024])
    lines = dict(zip((cell["series"] for cell in recall["cells"]), figure["lines"], strict=True))
    assert [point["point"] for point in lines[0]] == [64, 256, 1024]
    assert [point["point"] for point in lines[5]] == [64]
    speed, carried = lines[0][1]["values"]
    assert carried == [1024 * 256] * 3
    assert speed[1] <= speed[0] <= speed[2]
    assert lines[0][1]["hover"][2] == "context of 256 tokens"
    assert lines[0][1]["hover"][3].startswith("generates ")
    assert lines[0][1]["hover"][4] == "carries 256 KiB"
    rows, name = recall["sections"]["runs"]["rows"], "decoding tokens_per_second at"
    assert rows[0]["values"][f"{name} 64"] == rows[0]["values"]["tokens_per_second"] / 30
    assert next(run for run in rows if run["series"] == 5)["texts"][f"{name} 1024"] == "–"
    axes = [figure["axis"], *(panel["axis"] for panel in figure["panels"])]
    for axis, numbers in zip(axes, zip(*map(numbers_of, figure["lines"]), strict=True), strict=True):
        low, high = (10**bound for bound in axis["range"])
        assert all(low < number < high for group in numbers for number in group)


def numbers_of(line):
    """The points of one line, and the values of either panel."""
    panels = [[number for point in line for number in point["values"][panel]] for panel in (0, 1)]
    return [[point["point"] for point in line], *panels]


def test_published_curves_are_there_where_they_belong(recall, tmp_path):
    curves = {
        (curve["series"], curve["setting"]): curve for curve in recall["sections"]["quality"]["published"]
    }
    assert set(curves) == {(0, 0), (5, 0)}  # attention and hyena, N=64 with 4 pairs
    assert curves[5, 0]["sizes"] == [64, 128, 256, 512]
    assert curves[5, 0]["values"] == [0.52, 0.75, 0.85, 0.87]
    assert curves[5, 0]["hover"][1] == [
        "Hyena, as published, width 128",
        "N=64, 4 pairs",
        "accuracy 0.75, read off the paper's figure",
    ]
    assert data_of(text_study(tmp_path / "text"))["sections"]["quality"]["published"] == []


def test_a_failed_run_keeps_its_row_and_message(recall):
    run = next(run for run in recall["sections"]["runs"]["rows"] if run["status"] == "failed")
    assert run["message"] == "RuntimeError: out of memory"
    assert run["values"]["quality"] is None
    assert run["texts"]["quality"] == "–"
    assert json.loads(run["spec"])["candidate"] == "mamba2"
    seeds = [seed for group in recall["sections"]["curves"]["groups"] for seed in group["seeds"]]
    assert [seed["curve"]["step"] for seed in seeds if seed["status"] == "failed"] == [[]]


def test_the_direction_is_on_the_axis(tmp_path):
    data = data_of(text_study(tmp_path / "text"))
    assert data["quality"]["title"] == "bits per byte (lower is better)"
    assert data["sizes"] == [128]
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
    assert data["sections"]["costs"]["panels"]["state"]["values"] == [None]
    assert data["sections"]["runs"]["rows"][0]["texts"]["state_bytes"] == "0 B"
