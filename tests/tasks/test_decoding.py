"""Decoding as a study times it: at every context that the model can reach, with what it carries there."""

from __future__ import annotations

import pytest
import torch

from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.tasks import decoding
from gatework.tasks.decoding import decoding_speed


def model_of(mixer="attention", **options) -> GateworkForCausalLM:
    return GateworkForCausalLM(
        GateworkConfig(vocab_size=16, hidden_size=8, mixers=[mixer], channel_mixer="none", **options)
    )


def test_each_context_is_timed_at_its_end(monkeypatch):
    lengths = []
    seconds = iter([9.0, 4.0, 1.0, 2.0] * 2)

    def decode_seconds(model, token, cache, steps):
        lengths.append((cache.get_seq_length(), steps))
        return next(seconds)

    monkeypatch.setattr(decoding, "_decode_seconds", decode_seconds)
    found = decoding_speed(model_of(), [8, 64])
    # The first time only warms up; of the others the median counts.
    assert lengths == [(1, 7)] * 4 + [(48, 16)] * 4
    assert [row["tokens_per_second"] for row in found["measured"]] == [3.5, 8.0]
    assert [row["state_bytes"] for row in found["measured"]] == [4 * 2 * 2 * 8 * n for n in (8, 64)]
    assert found["stopped"] is None


def test_a_speed_is_positive_and_leaves_the_random_numbers_alone():
    model = model_of("gated_linear_attention")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    found = decoding_speed(model, [2, 40])
    assert [row["context"] for row in found["measured"]] == [2, 40]
    assert all(row["tokens_per_second"] > 0 for row in found["measured"])
    assert len({row["state_bytes"] for row in found["measured"]}) == 1
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"learned_positions": 64}, "longer than the position table"),
        ({"mixer": "hyena", "context_length": 64}, "at most max_length=64"),
    ],
)
def test_contexts_beyond_the_model_are_left_out_with_the_reason(model, reason):
    found = decoding_speed(model_of(**model), [32, 64, 256, 1024])
    assert [row["context"] for row in found["measured"]] == [32, 64]
    assert reason in found["stopped"]


def test_nothing_asked_is_nothing_measured():
    assert decoding_speed(model_of(), []) == {"measured": [], "stopped": None}
