import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.data.continuous_recall import ContinuousConfig, make_continuous


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.integers(1, 6),
    spare=st.integers(0, 3),
    odd=st.integers(0, 1),
    passes=st.integers(1, 3),
    mapping=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_key_is_asked_for_once(pairs, spare, odd, passes, mapping, seed):
    half, width = pairs + spare, 3
    embeddings = torch.randn(2 * half + odd, width, generator=torch.Generator().manual_seed(seed))
    config = ContinuousConfig(4, pairs, passes, mapping)
    segment = make_continuous(config, seed, embeddings)
    keys, values = embeddings[:half].tolist(), embeddings[half:].tolist()
    assert segment.inputs.shape == (4, (passes + 1) * pairs, 2 * width)
    for row, labels in zip(segment.inputs.tolist(), segment.labels.tolist(), strict=True):
        memory = {}
        for t, token in enumerate(row[: passes * pairs]):
            memory[keys.index(token[:width])] = values.index(token[width:])
            assert len(memory) == min(t % pairs + 1, pairs) or t >= pairs
        assert len(memory) == len(set(memory.values())) == pairs
        asked = [keys.index(token[:width]) for token in row[passes * pairs :]]
        assert all(token[width:] == [0.0] * width for token in row[passes * pairs :])
        assert sorted(asked) == sorted(memory)
        assert labels == [memory[key] for key in asked]


def test_data_depend_on_nothing_but_the_seed():
    embeddings = torch.eye(8)
    torch.manual_seed(1)
    first = make_continuous(ContinuousConfig(5, 3), 7, embeddings)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = make_continuous(ContinuousConfig(5, 3), 7, embeddings)
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first) == 5


def test_embeddings_can_be_trained_through_the_inputs():
    embeddings = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    config = ContinuousConfig(2, 3)
    assert torch.autograd.gradcheck(lambda rows: make_continuous(config, 7, rows).inputs, [embeddings])


@pytest.mark.bad_input
def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"at least 2 \* num_kv_pairs=10 rows, got 9"):
        make_continuous(ContinuousConfig(2, 5), 1, torch.zeros(9, 2))
    with pytest.raises(ValueError, match="num_passes must be at least 1, got 0"):
        ContinuousConfig(num_passes=0)
    with pytest.raises(TypeError, match="per_sequence_mapping must be True or False, got None"):
        ContinuousConfig(per_sequence_mapping=None)
