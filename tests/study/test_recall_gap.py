from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gatework.study.answer import answer
from gatework.study.report import read_summary
from gatework.study.results import metric_columns
from gatework.study.sections.recall_gap import gap_caveats, gap_sentences
from gatework.study.sections.recall_gap_cells import perplexity, text_gap
from gatework.study.study import Study
from gatework.tasks.text_declaration import TEXT
from tests.study.synthetic_gaps import GAPS, MAX_TRAIN_COUNT, SHARE, gap_study
from tests.study.synthetic_studies import recall_study, text_study


@pytest.fixture(scope="module")
def gap(tmp_path_factory):
    return text_gap(read_summary(gap_study(tmp_path_factory.mktemp("gap") / "text")))


def cell_of(gap, mixer, width=128):
    (cell,) = [cell for cell in gap.cells if (cell.cell.candidate, cell.cell.size) == (mixer, width)]
    return cell


def gap_of(tmp_path, **options):
    return text_gap(read_summary(gap_study(tmp_path / "s", **options)))


def test_the_share_is_that_of_the_paper(gap):
    for mixer in ("base_conv", "h3", "long_conv", "hyena"):
        cell = cell_of(gap, mixer)
        (_, base_hits, base_other, _), (_, hits, other, _) = GAPS["attention"], GAPS[mixer]
        whole = SHARE * (hits - base_hits) + (1 - SHARE) * (other - base_other)
        assert cell.status == "gap"
        assert cell.gap().mean == pytest.approx(whole)
        assert cell.gap("ar_hits").mean == pytest.approx(hits - base_hits)
        assert cell.on_hits.mean == pytest.approx(SHARE * (hits - base_hits))
        assert cell.on_hits.mean + cell.on_rest.mean == pytest.approx(whole)
        assert cell.share.mean == pytest.approx(SHARE * (hits - base_hits) / whole)
    assert cell_of(gap, "hyena").share.mean > 1  # better than attention on the rest: not capped here


def test_each_seed_is_paired_with_the_mean_of_the_base(gap):
    cell = cell_of(gap, "rwkv4")
    base = sum(run.loss() for run in cell.base.runs) / 3
    seeds = [run.loss() - base for run in cell.cell.runs]
    spread = cell.gap()
    assert (spread.low, spread.high, spread.count) == (min(seeds), max(seeds), 3)
    hits = sum(run.loss("ar_hits") for run in cell.base.runs) / 3
    shares = [SHARE * (run.loss("ar_hits") - hits) / (run.loss() - base) for run in cell.cell.runs]
    assert (cell.share.low, cell.share.high) == pytest.approx((min(shares), max(shares)))


def test_who_has_no_gap(gap):
    statuses = {cell.cell.candidate: cell.status for cell in gap.cells}
    assert {mixer for mixer, status in statuses.items() if status == "gap"} == {
        *("base_conv", "h3", "hyena", "long_conv", "rwkv4")
    }
    assert statuses["attention"] == "base"
    assert {statuses[name] for name in ("base_conv+attention", "mamba2", "gated_delta_net")} == {"no gap"}
    lost = cell_of(gap, "gated_linear_attention")
    assert (lost.status, lost.gap(), lost.share) == ("diverged", None, None)
    assert lost.perplexity("ar_hits").count == 2  # what is left of it is shown, but compared with nothing
    assert cell_of(gap, "gated_delta_net").gap().mean < 0
    assert cell_of(gap, "gated_delta_net").share is None


def test_perplexities_are_those_of_the_seeds(gap):
    cell = cell_of(gap, "hyena")
    values = [math.exp(run.loss("ar_hits")) for run in cell.cell.runs]
    found = cell.perplexity("ar_hits")
    assert (found.mean, found.low, found.high) == pytest.approx((sum(values) / 3, min(values), max(values)))
    assert perplexity(1e4) is None  # beyond what a float holds


def test_what_is_said_of_the_gap(gap):
    text = " ".join(gap_sentences(gap))
    assert (
        "On text, 55% of the average gap to attention of the 5 mixers that are clearly worse lies on AR "
        "hits, which are 6.4% of the tokens." in text
    )
    assert "long_conv has the largest: 0.420 nats per token, 38% of it on AR hits." in text
    assert "Ahead of attention by 0.067 nats per token is gated_delta_net." in text
    assert (
        "Of the hybrids with attention, base_conv+attention is the best, with a gap of 0.008 nats per token: "
        "it closes 96% of that of base_conv." in text
    )
    caveats = " ".join(gap_caveats(gap))
    assert "Not clearly worse than attention on text, so no gap: base_conv+attention and mamba2." in caveats
    assert "Better than attention on text, so no gap: gated_delta_net." in caveats
    assert "Without a gap, because a seed diverged: gated_linear_attention." in caveats
    assert list(answer(gap.summary).findings) == gap_sentences(gap)
    assert "55% of the average gap" in answer(gap.summary).text


def test_the_hybrid_may_be_the_closest_of_all(tmp_path):
    gap = gap_of(tmp_path, mixers=("attention", "base_conv", "base_conv+attention"))
    assert gap_sentences(gap)[-1] == (
        "Closest to attention comes the hybrid base_conv+attention, with a gap of 0.008 nats per token: "
        "it closes 96% of that of base_conv."
    )
    assert "of the one mixer that is clearly worse lies on AR hits" in gap_sentences(gap)[0]


def test_one_seed_has_no_range_but_a_gap(tmp_path):
    gap = gap_of(tmp_path, seeds=(1,), mixers=("attention", "mamba2", "hyena"))
    assert {cell.cell.candidate: cell.status for cell in gap.cells} == {
        "attention": "base",
        "mamba2": "gap",  # with more seeds, they overlap
        "hyena": "gap",
    }
    assert cell_of(gap, "hyena").share.count == 1


def test_the_base_is_attention_in_every_layer(tmp_path):
    two = [{"name": "attention"}, {"name": "attention", "num_heads": 1}]
    mixed = gap_of(tmp_path / "a", mixers=("hyena", "h3"), layers={"h3": two})
    assert mixed.base == "h3"
    window = [{"name": "sliding_window"}]
    by_label = gap_of(tmp_path / "b", mixers=("attention", "hyena"), layers={"attention": window})
    assert by_label.base == "attention"
    both = gap_of(tmp_path / "c", mixers=("h3", "attention"), layers={"h3": two})
    assert both.base == "attention"
    elsewhere = gap_of(tmp_path / "d", mixers=("h3", "attention"), layers={"h3": two, "attention": window})
    assert elsewhere.base == "h3"  # what a label says counts only where no layers do


def test_without_attention_there_is_no_gap(tmp_path):
    gap = gap_of(tmp_path, mixers=("hyena", "h3"))
    assert gap.base is None
    assert {cell.status for cell in gap.cells} == {"unknown"}
    assert all(cell.gap() is None and cell.share is None for cell in gap.cells)
    assert gap_sentences(gap) == [
        "No mixer is attention in all of its layers, so there is no gap to attention to explain."
    ]


def test_a_base_that_lost_a_seed_is_none(tmp_path):
    gap = gap_of(tmp_path, mixers=("attention", "hyena"), diverged=("attention",))
    assert gap_sentences(gap) == [
        "attention has no finished result without a diverged seed, so no gap is known."
    ]
    assert cell_of(gap, "hyena").gap() is None


def test_the_base_is_that_of_the_same_width(tmp_path):
    gap = gap_of(tmp_path, mixers=("attention", "hyena"), widths=(64, 128))
    assert {cell.base.size == cell.cell.size for cell in gap.cells} == {True}
    assert gap.focus == ("python source", 128)
    assert "clearly worse at width 128 lies" in gap_sentences(gap)[0]


def test_text_without_slices_has_a_gap_but_no_words(tmp_path):
    gap = gap_of(tmp_path / "a", slices=False)
    assert not gap.has_slices
    assert gap_sentences(gap) == gap_caveats(gap) == []
    assert cell_of(gap, "long_conv").gap().mean == pytest.approx(0.420, abs=1e-3)
    assert cell_of(gap, "long_conv").share is None
    assert not text_gap(read_summary(text_study(tmp_path / "bytes"))).has_slices
    recall = read_summary(recall_study(tmp_path / "recall", settings=1))
    assert list(answer(recall).findings) == []  # the task brings no such section


def test_missing_runs_leave_no_gap(tmp_path):
    summary = read_summary(gap_study(tmp_path / "s", mixers=("attention", "hyena")))
    runs = [run if run.spec.candidate == "attention" else replace(run, result=None) for run in summary.runs]
    gap = text_gap(replace(summary, runs=runs))
    assert cell_of(gap, "hyena").status == "unknown"
    assert "No mixer is clearly worse than attention on text" in gap_sentences(gap)[0]


def test_the_tables_have_the_slices(tmp_path):
    study = Study.open(gap_study(tmp_path / "s", mixers=("attention", "gated_linear_attention")))
    row = study.runs[study.runs["mixer"] == "attention"].iloc[0]
    assert row["slice ar_hits"] == pytest.approx(0.77 - 0.04)
    assert row["perplexity ar_hits"] == pytest.approx(math.exp(0.77 - 0.04))
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert (row["ar_share"], row["max_train_count"]) == (SHARE, MAX_TRAIN_COUNT)
    assert study.runs["perplexity other"].isna().sum() == 1  # the seed that diverged
    cells = study.cells.set_index("mixer")
    assert cells.loc["attention", "perplexity ar_hits"] == pytest.approx(math.exp(0.77), rel=1e-3)


def test_accuracies_by_slice_are_no_losses():
    metrics = {"loss": 0.5, "slices": {"num_kv_pairs=4": 0.25}}
    assert metric_columns(TEXT, metrics) == {"slice num_kv_pairs=4": 0.25}
