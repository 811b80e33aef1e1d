"""The text task: its tokens, its ways to lay out documents, and what it reports of AR hits."""

from __future__ import annotations

import math

import pytest
import torch

from gatework.data.ar_slices import recalled_bigrams
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.tasks import create_task
from gatework.tasks.task import Training

NAMES = ["amber", "birch", "cedar", "daisy", "elder", "fig", "gorse", "holly"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents that repeat pairs of words of their own, so that there is something to recall."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    for number in range(80):
        first, second = torch.randint(len(NAMES), (2,), generator=generator).tolist()
        line = f"the {NAMES[first]} of {number * 7919 % 97} meets the {NAMES[second]}{number}\n"
        (folder / f"{number}.txt").write_text(line * (2 + number % 5))
    return folder


def setting(corpus, **options):
    return {"corpus": str(corpus), "tokenizer": "bpe", "vocab_size": 300, "length": 32, **options}


def scored(task, model=None):
    """The module of a task after a test pass."""
    if model is None:
        model = GateworkForCausalLM(GateworkConfig(vocab_size=task.vocab_size, hidden_size=8))
    module = task.module(model.eval(), Training(), 0.1)
    with torch.no_grad():
        for batch in task.test_batches():
            module.test_step(batch, 0)
    module.on_test_epoch_end()
    return module


@pytest.mark.parametrize("packing", ["crops", "packed", "padded"])
def test_slices_are_those_of_the_definition(corpus, packing):
    task = create_task("text", setting(corpus, packing=packing, max_train_count=20, num_test=0))
    module = scored(task)
    recalled = task.recalled()
    nats = {True: [], False: []}
    for batch in task.test_batches():
        documents = {} if batch.seq_idx is None else {"seq_idx": batch.seq_idx}
        with torch.no_grad():
            logits = module.model(batch.inputs, **documents).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), reduction="none"
        ).view_as(batch.labels)
        hits = recalled_bigrams(
            batch.inputs, batch.labels, recalled.counts, max_train_count=20, seq_idx=batch.seq_idx
        )
        for hit in (True, False):
            nats[hit] += losses[(hits == hit) & (batch.labels != -100)].tolist()
    assert len(nats[True]) > 10
    slices = module.summary["slices"]
    assert slices["ar_hits"] == pytest.approx(sum(nats[True]) / len(nats[True]), rel=1e-5)
    assert slices["other"] == pytest.approx(sum(nats[False]) / len(nats[False]), rel=1e-5)
    share = len(nats[True]) / (len(nats[True]) + len(nats[False]))
    assert module.summary["measures"] == {"ar_share": share, "max_train_count": 20}


@pytest.mark.parametrize("packing", ["crops", "packed", "padded"])
def test_guessing_costs_the_logarithm_of_the_vocabulary(corpus, packing):
    task = create_task("text", setting(corpus, packing=packing, num_test=0))
    model = GateworkForCausalLM(GateworkConfig(vocab_size=300, hidden_size=8, tie_word_embeddings=False))
    torch.nn.init.zeros_(model.lm_head.weight)
    labels = torch.cat([batch.labels[batch.labels != -100] for batch in task.test_batches()])
    num_bytes = torch.from_numpy(task.tokenizer.token_bytes())[labels].sum().item()
    assert scored(task, model).quality() == pytest.approx(math.log2(300) * len(labels) / num_bytes)


def test_bytes_have_no_slices(corpus):
    module = scored(create_task("text", {"corpus": str(corpus), "length": 32}))
    assert module.summary["slices"] == module.summary["measures"] == {}
    assert module.quality() == module.summary["loss"] / math.log(2)


def test_the_share_of_hits_is_near_the_one_asked_for_and_printed(corpus):
    shares = {}
    for share in (0.02, 0.3):
        task = create_task("text", setting(corpus, ar_share=share, num_test=0))
        shares[share] = scored(task).summary["measures"]["ar_share"]
        assert f"{shares[share]:.1%} of the test tokens" in task.describe()[-1]
        assert f"at most {task.recalled().max_train_count:,} times" in task.describe()[-1]
    assert shares[0.02] == pytest.approx(0.02, abs=0.04)
    assert shares[0.3] == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_packed_and_padded_rows_keep_documents_apart(corpus, packing):
    task = create_task("text", setting(corpus, packing=packing))
    batches = list(task.train_batches(4, steps=3, seed=0))
    assert len(batches) == task.batches_per_epoch(4)
    read = sum(batch.num_tokens for batch in batches)
    assert read == len(task._load().train.tokens)
    assert all(((batch.labels == -100) == (batch.seq_idx < 0)).all() for batch in batches)
    assert any(len(row[row >= 0].unique()) > 1 for batch in batches for row in batch.seq_idx) == (
        packing == "packed"
    )


def test_crops_have_no_epoch(corpus):
    assert create_task("text", setting(corpus)).batches_per_epoch(4) is None


def test_predictions_are_text_again(corpus):
    task = create_task("text", setting(corpus, packing="padded", num_test=3))
    module = scored(task)
    rows = [row for batch in task.test_batches() for row in module.predictions(batch)]
    assert len(rows) == 3
    assert all("the" in row["text"] and row["bits_per_byte"] > 0 for row in rows)
    assert not any("<|endoftext|><|endoftext|>" in row["text"] for row in rows)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "tight"}, "packing must be one of crops, packed, padded, got 'tight'"),
        ({"max_train_count": -1}, "max_train_count must be"),
        ({"ar_share": 6.4}, r"ar_share must be positive and below 1, got 6\.4"),
        ({"vocab_size": 10**6}, "vocab_size must be at most"),
        ({"tokeniser": "bpe"}, "did you mean 'tokenizer'"),
        ({"length": 10**6}, "length must be below"),
    ],
)
def test_impossible_settings_are_refused(corpus, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        create_task("text", setting(corpus, **options))
