import random
import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gatework.data.text import TextCrops, TextWindows
from gatework.data.tokens import load_tokens
from tests.data.corpora import write, write_library


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def corpus(request, tmp_path_factory):
    """The same text in eight and in sixteen bits per token."""
    folder = write_library(tmp_path_factory.mktemp("library"))
    size = {"bytes": None, "bpe": 270}[request.param]
    corpus = load_tokens(folder, tokenizer=request.param, vocab_size=size)
    assert corpus.train.tokens.dtype == {"bytes": np.uint8, "bpe": np.uint16}[request.param]
    return corpus


def test_crops_follow_from_seed_and_number(corpus):
    torch.manual_seed(0)
    crops = TextCrops(corpus, 13, num_examples=30, seed=5)
    first = [crops[i] for i in range(30)]
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again = TextCrops(corpus, 13, num_examples=90, seed=5)
    assert all(torch.equal(again[i][0], first[i][0]) for i in reversed(range(30)))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    other = TextCrops(corpus, 13, num_examples=30, seed=6)
    assert sum(torch.equal(other[i][0], first[i][0]) for i in range(30)) < 10
    stretches = np.lib.stride_tricks.sliding_window_view(corpus.train.tokens, 14)
    for inputs, labels in first:
        assert inputs.dtype == labels.dtype == torch.int64
        assert (stretches == [*inputs.tolist(), int(labels[-1])]).all(1).any()
        assert torch.equal(inputs[1:], labels[:-1])


def test_crops_begin_everywhere(tmp_path):
    corpus = load_tokens(write(tmp_path, {"a.txt": "".join(map(chr, range(65, 85)))}) / "a.txt")
    assert len(corpus.train.tokens) == 19
    starts = {int(inputs[0]) for inputs, _ in TextCrops(corpus, 15, num_examples=200, seed=1)}
    assert starts == set(range(65, 65 + 4))
    assert len(TextCrops(corpus, 18, num_examples=3, seed=1)[0][0]) == 18


def test_crops_are_where_they_always_were():
    """The recipes' learning curves depend on it."""
    corpus = load_tokens(__file__)
    crops = TextCrops(corpus, 4, num_examples=2**40, seed=7)
    starts = [
        int(np.random.SeedSequence([7, index]).generate_state(1, np.uint64)[0])
        % (len(corpus.train.tokens) - 4)
        for index in (0, 1, 2**40 - 1)
    ]
    assert len(set(starts)) == 3
    for index, start in zip((0, 1, 2**40 - 1), starts, strict=True):
        assert crops[index][1].tolist() == corpus.train.tokens[start + 1 : start + 5].tolist()


@pytest.mark.parametrize("length", [1, 2, 7, 49])
def test_windows_score_every_token_once(tmp_path, length):
    text = "".join(random.Random(2).choices("abc", k=1000))
    corpus = load_tokens(write(tmp_path, {"a.txt": text}) / "a.txt")
    windows = TextWindows(corpus, length)
    loaded = list(DataLoader(windows, batch_size=3))
    inputs, labels = (torch.cat([batch[i] for batch in loaded]).flatten() for i in range(2))
    split = corpus.validation.tokens.tolist()
    scored = (len(split) - 1) // length * length
    assert len(windows) == scored // length
    assert inputs.tolist() == split[:scored]
    assert labels.tolist() == split[1 : scored + 1]
    with pytest.raises(IndexError):
        windows[len(windows)]


@pytest.mark.bad_input
def test_bad_arguments_are_named(tmp_path):
    corpus = load_tokens(write(tmp_path, {"a.txt": "some text " * 30}))
    where = re.escape(str(tmp_path))
    with pytest.raises(
        ValueError, match=f"length must be below the 271 tokens of the train split of {where}, got 271"
    ):
        TextCrops(corpus, 271, num_examples=1, seed=1)
    with pytest.raises(ValueError, match=r"length must be at least 1, got 0"):
        TextWindows(corpus, 0)
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        TextWindows(corpus, 4, split="dev")
    with pytest.raises(IndexError, match=r"index must be in 0 \.\. 2, got 3"):
        TextCrops(corpus, 4, num_examples=3, seed=1)[3]
