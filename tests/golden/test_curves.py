"""Every recipe trains as it did when its losses were written down."""

from __future__ import annotations

import json

import pytest

from tests.golden.curves import CURVES, STEPS, curves, name_of, recipes


@pytest.mark.parametrize("path", recipes(), ids=name_of)
def test_losses_are_those_written_down(path, tmp_path):
    golden = json.loads(CURVES.read_text())[name_of(path)]
    found = curves(path, tmp_path)
    assert found.keys() == golden.keys()
    for model, losses in found.items():
        assert len(losses) == len(golden[model]) == STEPS
        # Processors round differently: a part in ten thousand, after ten steps of optimizer.
        assert losses == pytest.approx(golden[model], rel=1e-4), model
        assert losses[0] != losses[-1]


def test_nothing_is_written_down_that_is_no_recipe():
    assert json.loads(CURVES.read_text()).keys() == set(map(name_of, recipes()))
