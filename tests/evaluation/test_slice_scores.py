"""Scores on AR slices equal the definition, for models of Transformers and for our own."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from gatework.data.ar_slices import BigramCounts, gap_share
from gatework.data.tokenizer import train_bpe
from gatework.data.tokens import load_tokens
from gatework.evaluation.causal_model import check_causal, load_causal_model, token_losses
from gatework.evaluation.slice_options import SliceOptions
from gatework.evaluation.slice_scores import evaluate_ar_slices, score_slices
from gatework.hf import GateworkConfig, GateworkForCausalLM

PARTS = ("overall", "ar_hits", "other")


def gpt2(seed=0, **options):
    torch.manual_seed(seed)
    config = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 270, "n_positions": 24, **options}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **config)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents of repeated names, and models of them with their tokenizer."""
    folder = tmp_path_factory.mktemp("slices")
    (folder / "text").mkdir()
    for number in range(80):
        name = f"zq{number * 7919 % 97:02d}x{number}"
        words = f"let {name} be {number}; then {name} and {name} again.\n" * (1 + number % 3)
        (folder / "text" / f"{number}.txt").write_text(words)
    documents = [path.read_bytes() for path in sorted((folder / "text").iterdir())]
    tokenizer = train_bpe(documents, 270)
    for name, seed in (("model", 1), ("base", 2)):
        gpt2(seed).save_pretrained(folder / name)
        tokenizer.pretrained().save_pretrained(folder / name)
    return folder


def slow_scores(model, corpus, split, length, most, by_document):
    """The definition, one context and one token after another."""
    tokens = corpus.split(split).tokens.astype(int).tolist()
    train = corpus.train.tokens.astype(int).tolist()
    counts = Counter(itertools.pairwise(train))
    starts = {*corpus.split(split).starts.tolist()} if by_document else set()
    # Windows follow one another as in evaluation during training: the first token is only an input.
    first, last = (0, len(tokens)) if by_document else (1, (len(tokens) - 1) // length * length + 1)
    contexts = []
    for i in range(first, last):
        if not contexts or i in starts or len(contexts[-1]) == length:
            contexts.append([])
        contexts[-1].append((tokens[i - 1] if i else corpus.tokenizer.end_id, tokens[i]))
    losses = {part: [] for part in PARTS}
    for pairs in contexts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[first for first, _ in pairs]])).logits[0].double()
        for i, (pair, row) in enumerate(zip(pairs, logits, strict=True)):
            hit = pair in pairs[:i] and counts[pair] <= most
            loss = -float(row.log_softmax(-1)[pair[1]])
            losses["overall"].append(loss)
            losses["ar_hits" if hit else "other"].append(loss)
    return contexts, losses


@pytest.mark.parametrize("packing", ["windows", "documents"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_scores_equal_the_definition(folder, packing, batch_size):
    options = SliceOptions(
        suffixes=(".txt",), length=17, packing=packing, batch_size=batch_size, max_train_count=3
    )
    report = evaluate_ar_slices(folder / "model", folder / "text", options, base=folder / "base")
    corpus = load_tokens(folder / "text", tokenizer=str(folder / "model"))
    for name, scores in (("model", report.scores), ("base", report.base_scores)):
        model = GPT2LMHeadModel.from_pretrained(folder / name).eval()
        contexts, losses = slow_scores(model, corpus, "test", 17, 3, packing == "documents")
        assert report.num_contexts == len(contexts)
        for part in PARTS:
            assert scores.tokens[part] == len(losses[part]) > 0
            assert scores.loss(part) == pytest.approx(np.mean(losses[part]), rel=1e-5)
            assert scores.perplexity(part) == pytest.approx(math.exp(np.mean(losses[part])), rel=1e-4)
    assert report.num_train_tokens == len(corpus.train.tokens)
    assert report.gap == pytest.approx(report.scores.loss("overall") - report.base_scores.loss("overall"))
    assert report.ar_share_of_gap == gap_share(report.base_scores, report.scores)
    scored = itertools.chain.from_iterable(contexts)
    sizes = corpus.tokenizer.token_bytes()
    assert report.num_bytes == sum(sizes[second] for _, second in scored)
    bits = report.scores.nats["overall"] / math.log(2) / report.num_bytes
    assert report.bits_per_byte(report.scores) == pytest.approx(bits)


def test_another_text_is_counted(folder, tmp_path):
    (tmp_path / "train.txt").write_text("let zq00x0 be. " * 3)
    options = SliceOptions(suffixes=(".txt",), train=str(tmp_path), length=24, max_train_count=0)
    report = evaluate_ar_slices(folder / "model", folder / "text", options)
    train = load_tokens(tmp_path, tokenizer=str(folder / "model"))
    streams = [train.split(name).tokens for name in ("train", "validation", "test")]
    assert report.num_train_tokens == sum(map(len, streams))
    assert report.split == "all"
    corpus = load_tokens(folder / "text", tokenizer=str(folder / "model"))
    assert report.scores.tokens["overall"] == sum(
        (len(corpus.split(name).tokens) - 1) // 24 * 24 for name in ("train", "validation", "test")
    )
    own = evaluate_ar_slices(folder / "model", folder / "text", SliceOptions(length=24, max_train_count=0))
    assert report.scores.share > own.scores.share  # its names are unknown there


def test_a_share_chooses_the_threshold(folder):
    def shares(**options):
        return evaluate_ar_slices(folder / "model", folder / "text", SliceOptions(length=20, **options))

    rare, often = shares(ar_share=0.05), shares(ar_share=0.5)
    assert 0 < rare.max_train_count < often.max_train_count

    def distance(most):
        return abs(shares(max_train_count=most).scores.share - 0.05)

    nearest = distance(rare.max_train_count)
    assert nearest <= distance(rare.max_train_count - 1)
    assert nearest <= distance(rare.max_train_count + 1)


def test_our_models_and_models_in_memory(folder):
    config = GateworkConfig(hidden_size=8, mixers=["base_conv", "attention"], context_length=30)
    ours = GateworkForCausalLM(config)
    options = SliceOptions(tokenizer="bytes", max_tokens=100)
    report = evaluate_ar_slices(ours, folder / "text", options)
    assert (report.length, report.num_contexts, report.num_bytes) == (30, 3, 90)
    assert not ours.training
    assert ours.config.use_cache  # the model is the caller's
    ours.save_pretrained(folder / "ours")
    assert evaluate_ar_slices(folder / "ours", folder / "text", options).scores.nats == report.scores.nats


def test_a_recurrent_model_of_transformers():
    model = MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=12)).eval()
    tokens = torch.randint(12, (2, 9))
    check_causal(model, tokens)
    labels = tokens[:, 1:].masked_fill(torch.arange(8) > 5, -100)
    losses = token_losses(model, tokens[:, :-1], labels)
    expected = -model(input_ids=tokens[:, :-1]).logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(losses, expected.detach() * (labels != -100))


def test_half_precision_is_scored_in_single(folder):
    reports = [
        evaluate_ar_slices(folder / "model", folder / "text", SliceOptions(dtype=dtype, length=24))
        for dtype in ("float32", "bfloat16")
    ]
    assert reports[0].scores.tokens == reports[1].scores.tokens
    assert reports[1].scores.loss("overall") == pytest.approx(reports[0].scores.loss("overall"), rel=1e-2)


# --- what is refused ---


@pytest.fixture
def offline(monkeypatch):
    """Keep the hub's client from asking the network for names that are none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 25}, "length must be at most 24, what model .*model' takes, got 25"),
        ({"length": 1}, "length must be at least 2, got 1"),
        ({"max_train_count": 1, "ar_share": 0.1}, "give one of them"),
        ({"ar_share": 1.5}, "ar_share must be between 0 and 1, got 1.5"),
        ({"split": "train"}, "another text to count with train"),
        ({"split": "tests"}, "split must be one of train, validation, test, all, got 'tests'"),
        ({"packing": "crops"}, "packing must be one of windows, documents, got 'crops'"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"device": "gpux"}, "device must be one that this machine has, such as cpu, got 'gpux'"),
        ({"tokenizer": "none/such"}, "none/such"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_bad_options_are_named(folder, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate_ar_slices(folder / "model", folder / "text", SliceOptions(**options))


@pytest.mark.bad_input
@pytest.mark.usefixtures("offline")
def test_bad_models_are_named(folder, tmp_path):

    def refused(model, message, **options):
        with pytest.raises(ValueError, match=message):
            evaluate_ar_slices(model, folder / "text", SliceOptions(**options))

    (tmp_path / "nothing").mkdir()
    refused(tmp_path / "nothing", "is a folder without config.json")
    refused(folder / "text" / "1.txt", "is a file")
    refused("none/such", "model 'none/such' cannot be loaded")
    gpt2().save_pretrained(tmp_path / "bare")
    refused(tmp_path / "bare", "comes without a tokenizer.*--tokenizer")
    gpt2(vocab_size=269).save_pretrained(tmp_path / "small")
    refused(tmp_path / "small", "embeddings for 269 tokens.*has 270", tokenizer=str(folder / "model"))
    (tmp_path / "small" / "model.safetensors").write_bytes(b"broken")
    refused(tmp_path / "small", "cannot be loaded")
    refused(gpt2(), "has no tokenizer")
    bert = BertConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8, vocab_size=270
    )
    refused(
        BertLMHeadModel(bert), "BertLMHeadModel is not causal", tokenizer=str(folder / "model"), length=20
    )
    broken = gpt2()
    broken.transformer.ln_f.bias.data[0] = float("inf")
    refused(broken, "the loss of .* tokens is not finite", tokenizer=str(folder / "model"))


@pytest.mark.bad_input
def test_models_without_their_head_are_refused(tmp_path):
    gpt2(tie_word_embeddings=False).transformer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of a causal language model \(lm_head.weight\)"):
        load_causal_model(tmp_path)


@pytest.mark.bad_input
def test_tokenizers_must_agree(folder, tmp_path):
    gpt2().save_pretrained(tmp_path)
    train_bpe([b"other text, other merges; other text, other merges"] * 9, 270).pretrained().save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="have different tokenizers"):
        evaluate_ar_slices(folder / "model", folder / "text", base=tmp_path)


@pytest.mark.bad_input
def test_bad_texts_are_named(folder, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(ValueError, match=r"too short for one context: .*tokens in its test split"):
        evaluate_ar_slices(folder / "model", tmp_path)
    (tmp_path / "short.txt").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match="no text"):
        evaluate_ar_slices(folder / "model", tmp_path)


@pytest.mark.bad_input
def test_own_batches_with_foreign_tokens():
    counts = BigramCounts.from_table(np.zeros((400, 400), np.int64))
    tokens = torch.tensor([[1, 2, 300]])
    with pytest.raises(ValueError, match="labels must be below the 270 logits"):
        score_slices(gpt2(), [(tokens[:, :-1], tokens[:, 1:])], counts, max_train_count=0)
