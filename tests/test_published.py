"""Published figures are data with a source, and every number of them is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gatework.bench.gna import PUBLISHED
from gatework.models.language.zoology_language_models import ZOOLOGY_LANGUAGE_MODELS
from gatework.published import published_names, read_published


def test_there_are_these():
    assert published_names() == ["gna_speedups", "zoology_language_models", "zoology_recall"]


@pytest.mark.parametrize("name", published_names())
def test_every_figure_has_a_source(name):
    source = read_published(name)["source"]
    assert source["paper"].startswith("arXiv:")
    assert all(source[what] for what in ("title", "where", "how", "what"))
    assert read_published(name) is read_published(name)


@pytest.mark.bad_input
def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"gna_speedups, .* got 'zoology'"):
        read_published("zoology")


def test_every_language_model_has_its_numbers_and_a_shape():
    printed = read_published("zoology_language_models")["models"]
    assert [entry["name"] for entry in printed] == list(ZOOLOGY_LANGUAGE_MODELS)
    for entry in printed:
        model = ZOOLOGY_LANGUAGE_MODELS[entry["name"]]
        assert entry == {
            name: list(model.perplexity) if name == "perplexity" else getattr(model, name) for name in entry
        }


def test_every_speedup_is_in_a_case():
    for entry, case in zip(read_published("gna_speedups")["cases"], PUBLISHED, strict=True):
        assert (entry["name"], len(entry["speedups"])) == (case.name, len(case.strides))
        for row in entry["speedups"]:
            printed = case.printed[tuple(row["stride"])]
            assert row == {"stride": row["stride"], **vars(printed)}


def test_reading_is_light():
    program = "import sys, gatework.published as p; p.read_published('zoology_recall'); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "numpy", "lightning", "transformers"} & set(loaded.split())
