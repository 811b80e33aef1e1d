from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from gatework.data.mqar import MQARConfig
from gatework.study.sections.published import (
    FIGURE_2,
    LANGUAGE_MODELS,
    MQAR_DEFAULTS,
    PUBLISHED_WIDTHS,
    published_caption,
    published_curves,
    published_gaps,
)
from gatework.study.spec import RunSpec, StudySpec
from gatework.study.summary import summarise
from gatework.tasks import task_declaration
from gatework.tasks.task import Quality
from tests.study.synthetic_studies import ACCURACY

ATTENTION = [{"name": "attention"}]
PAIR = [{"name": "base_conv", "kernel_size": 3}, {"name": "base_conv", "kernel_size": -1}]


def study_of(setting, layers=ATTENTION, *, widths=(64, 128), task="recall", quality=ACCURACY):
    runs = [RunSpec(task, setting, "a setting", "a mixer", layers, width, 0.1, 0, {}) for width in widths]
    return summarise(StudySpec("s", task, "command", "title", quality, task_declaration(task), runs), {})


def models_of(setting, layers=ATTENTION, **options):
    return [curve.model for curve in published_curves(study_of(setting, layers, **options))]


def test_the_figure_is_complete_and_plausible():
    assert set(FIGURE_2) == {(64, 4), (128, 8), (256, 16), (512, 64)}
    for panel in FIGURE_2.values():
        assert set(panel) == {"Attention", "Hyena", "H3", "BaseConv"}
        assert all(len(values) == len(PUBLISHED_WIDTHS) for values in panel.values())
        assert all(0 <= value <= 1 for values in panel.values() for value in values)
    longer = list(FIGURE_2.values())
    for name in ("Hyena", "BaseConv"):  # longer sequences are harder at every width
        for easy, hard in itertools.pairwise(longer):
            assert all(a >= b for a, b in zip(easy[name], hard[name], strict=True))


def test_the_defaults_are_those_of_the_data():
    fields = {field.name: field.default for field in dataclasses.fields(MQARConfig)}
    assert {
        "variant": "mqar",
        **{name: fields[name] for name in MQAR_DEFAULTS if name != "variant"},
    } == {**MQAR_DEFAULTS}


@pytest.mark.parametrize(
    ("setting", "matches"),
    [
        ({"input_seq_len": 64, "num_kv_pairs": 4}, True),
        ({"num_kv_pairs": 4}, True),  # 64 is the default
        ({"input_seq_len": 512, "num_kv_pairs": 64, "vocab_size": 600}, True),
        ({"input_seq_len": 64, "num_kv_pairs": 8}, False),
        ({"input_seq_len": 128, "num_kv_pairs": 4}, False),
        ({"variant": "parity", "input_seq_len": 64, "num_kv_pairs": 4}, False),
        ({"input_seq_len": 64, "num_kv_pairs": 4, "num_passes": 2}, False),
        ({}, False),
        ({"test": [{"input_seq_len": 64, "num_kv_pairs": 4}], "train": [{"input_seq_len": 16}]}, True),
        ({"test": [{"num_kv_pairs": 4}, {"num_kv_pairs": 8}], "train": []}, False),
        ({"train": [{"num_kv_pairs": 4}]}, False),
        ({"test": "nonsense", "train": 3}, False),
        ({"test": [3, None]}, False),
        ({"input_seq_len": [64], "num_kv_pairs": {"a": 4}}, False),
    ],
)
def test_settings_match_by_what_is_tested(setting, matches):
    assert models_of(setting) == (["Attention"] if matches else [])


@pytest.mark.parametrize(
    ("layers", "model"),
    [
        (ATTENTION * 3, "Attention"),
        ([{"name": "hyena", "order": 2}], "Hyena"),
        ([{"name": "h3"}], "H3"),
        (PAIR, "BaseConv"),
        ([{"name": "base_conv"}, {"name": "base_conv", "kernel_size": None}], "BaseConv"),
        (PAIR[::-1], None),
        (PAIR[:1], None),
        ([*PAIR, *ATTENTION], None),
        ([{"name": "based"}], None),
    ],
)
def test_mixers_match_by_their_layers(layers, model):
    assert models_of({"num_kv_pairs": 4}, layers) == [model] * bool(model)


def test_a_study_at_one_width_gets_that_width():
    (curve,) = published_curves(study_of({"num_kv_pairs": 4}, PAIR, widths=(128,)))
    assert (list(curve.sizes), list(curve.values)) == ([128], [0.95])
    assert published_curves(study_of({"num_kv_pairs": 4}, PAIR, widths=(32,))) == []
    (curve,) = published_curves(study_of({"num_kv_pairs": 4}, PAIR, widths=(16, 32)))
    assert list(curve.sizes) == [64, 128, 256, 512]


def test_other_tasks_and_qualities_get_nothing():
    assert models_of({"num_kv_pairs": 4}, task="text") == []
    assert models_of({"num_kv_pairs": 4}, quality=Quality("loss", "lower")) == []


def test_the_caption_says_what_differs():
    def caption(setting):
        summary = study_of(setting)
        return published_caption(summary, published_curves(summary))

    small = caption({"num_kv_pairs": 4, "vocab_size": 100})
    assert "arXiv:2312.04927, figure 2, read off the figure to about 0.02" in small
    assert "vocabulary of 8192 (here 100), 100,000 training examples" in small
    assert "best of four learning rates on the reported data" in small
    assert "other lengths" not in small
    assert "vocabulary of 8192, 100,000" in caption({"num_kv_pairs": 4})
    lists = {"test": [{"num_kv_pairs": 4}], "train": [{"num_kv_pairs": 4}, {"num_kv_pairs": 2}]}
    assert "other lengths or numbers of pairs" in caption(lists)


def test_the_language_models_lose_more_on_hits_than_elsewhere():
    attention = ((11.01, 2.16, 12.45), (9.44, 1.98, 10.62))  # 125 and 360 million parameters
    for name, models in LANGUAGE_MODELS.items():
        for model, base in zip(models, attention, strict=True):
            overall, hits, others = (
                math.log(one / two) for one, two in zip(model.perplexity, base, strict=True)
            )
            assert hits > overall > others
            assert (model.share < 0.5) == (name == "long_conv")
            assert model.share <= 1


@pytest.mark.parametrize(
    ("layers", "models"),
    [
        ([{"name": "hyena"}], ["Hyena", "Hyena"]),
        ([{"name": "rwkv4"}, {"name": "rwkv4", "num_layers": 2}], ["RWKV", "RWKV"]),
        ([{"name": "hyena"}, {"name": "attention"}], []),
        (ATTENTION, []),
    ],
)
def test_published_gaps_belong_to_a_mixer_alone(layers, models):
    found = published_gaps(study_of({}, layers, task="text"))
    assert [entry.model for entries in found.values() for entry in entries] == models
