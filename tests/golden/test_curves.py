"""Every recipe trains as it did when its losses were written down."""

from __future__ import annotations

import json

import pytest

from tests.golden.curves import CURVES, STEPS, losses, miniatures, name_of, recipes, write_corpus


@pytest.mark.parametrize("path", recipes(), ids=name_of)
def test_losses_are_those_written_down(path, tmp_path):
    golden = json.loads(CURVES.read_text())[name_of(path)]
    runs = miniatures(path, write_corpus(tmp_path / "corpus"))
    assert runs.keys() == golden.keys()
    for mixer, run in runs.items():
        found = losses(run)
        assert len(found) == len(golden[mixer]) == STEPS
        # Processors round differently: a part in ten thousand, after ten steps of optimizer.
        assert found == pytest.approx(golden[mixer], rel=1e-4), mixer
        assert found[0] != found[-1]


def test_nothing_is_written_down_that_is_no_recipe():
    assert json.loads(CURVES.read_text()).keys() == set(map(name_of, recipes()))
