from __future__ import annotations

import pytest

from gatework.study.plan import expand_grid

AXES = {
    "candidates": {
        "attention": [{"name": "attention"}],
        "hybrid": [{"name": "base_conv"}, {"name": "attention"}],
    },
    "settings": {"short": {"length": 64}, "long": {"length": 128}},
    "sizes": [16, 32, 64],
    "learning_rates": [0.001, 0.01],
    "seeds": [0, 1],
    "training": {"steps": 10},
}


def test_every_combination_once_in_order():
    runs = expand_grid("recall", **AXES)
    assert len(runs) == len({run.run_id for run in runs}) == 2 * 2 * 3 * 2 * 2
    assert (runs[0].candidate, runs[0].setting_name, runs[0].size, runs[0].seed) == (
        "attention",
        "short",
        16,
        0,
    )
    assert runs[1].seed == 1
    assert runs[-1].definition == AXES["candidates"]["hybrid"]
    assert runs[-1].setting == {"length": 128}
    assert {run.training["steps"] for run in runs} == {10}


def test_a_larger_grid_keeps_the_runs_of_a_smaller_one():
    small = {run.run_id for run in expand_grid("recall", **AXES)}
    large = {
        run.run_id
        for run in expand_grid("recall", **(AXES | {"seeds": [2, 1, 0], "sizes": [128, 64, 32, 16]}))
    }
    assert small < large


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": []}, "widths must name at least one value"),
        ({"candidates": {}}, "mixers must name at least one value"),
        ({"seeds": [3, 3]}, "seeds must differ, got 3 twice"),
        ({"learning_rates": [0.01, 1e-2]}, "learning_rates must differ, got 0.01 twice"),
        ({"sizes": [0]}, "width must be at least 1, got 0"),
        ({"candidates": {"nothing": []}}, "definition must say what is built"),
    ],
)
def test_bad_axes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        expand_grid("recall", **(AXES | change))
