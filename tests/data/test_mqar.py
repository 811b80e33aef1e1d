import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from gatework.data.mqar import MQARConfig, make_mqar
from gatework.data.mqar_statistics import mqar_statistics
from gatework.data.segment import IGNORED, TokenSegment
from tests.data.laws import follows, same_law

MODES = ("fast", "compat")
LEAST = 1e-4
STATISTICS = Path(__file__).parents[1] / "golden" / "zoology" / "mqar_stats.safetensors"

# Settings of the golden statistics.
GOLDEN = (
    {"vocab_size": 512, "input_seq_len": 64, "num_kv_pairs": 4, "power_a": 0.01},
    {"vocab_size": 512, "input_seq_len": 128, "num_kv_pairs": 16, "power_a": 0.01},
    {"vocab_size": 512, "input_seq_len": 64, "num_kv_pairs": 4, "power_a": 1.0},
)


@st.composite
def configs(draw):
    pairs, passes = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    length = 2 * pairs * (passes + 1) + 2 * draw(st.integers(0, 12))
    return MQARConfig(
        vocab_size=length + draw(st.one_of(st.integers(1, 5), st.integers(1, 9000))),
        num_examples=draw(st.integers(1, 9)),
        input_seq_len=length,
        num_kv_pairs=pairs,
        power_a=draw(st.sampled_from([0.01, 0.5, 1.0, 3.0, -0.5])),
        num_passes=passes,
        random_non_queries=draw(st.booleans()),
    )


def solve(inputs: list[int], context: int) -> dict[int, int]:
    """What a perfect memory knows after the context."""
    return dict(zip(inputs[0:context:2], inputs[1:context:2], strict=True))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=50, deadline=None)
@given(config=configs(), seed=st.integers(0, 2**32 - 1))
def test_every_pair_is_asked_for_once(mode, config, seed):
    segment = make_mqar(config, seed, mode=mode)
    half, context = config.vocab_size // 2, config.context_length
    assert segment.inputs.shape == segment.labels.shape == (config.num_examples, config.input_seq_len)
    assert len(segment) == config.num_examples
    for inputs, labels in zip(segment.inputs.tolist(), segment.labels.tolist(), strict=True):
        one_pass = inputs[: 2 * config.num_kv_pairs]
        assert inputs[:context] == one_pass * config.num_passes
        memory = solve(inputs, context)
        assert len(memory) == len(set(memory.values())) == config.num_kv_pairs
        assert all(1 <= key < half <= value < config.vocab_size for key, value in memory.items())
        scored = [t for t, label in enumerate(labels) if label != IGNORED]
        assert sorted(inputs[t] for t in scored) == sorted(memory)
        assert all(labels[t] == memory[inputs[t]] for t in scored)
        assert all(t >= context and (t - context) % 2 == 0 for t in scored)
        rest = [token for t, token in enumerate(inputs) if t >= context and t not in scored]
        assert all(0 <= token < config.vocab_size for token in rest)
        assert config.random_non_queries or not any(rest)


@pytest.mark.parametrize("setting", range(len(GOLDEN)))
def test_fast_has_the_statistics_of_the_authors(setting):
    golden = load_file(STATISTICS)
    config = MQARConfig(**GOLDEN[setting], num_examples=20_000)
    counted = mqar_statistics(make_mqar(config, 7), config)
    np.testing.assert_allclose(counted.slot_probabilities, golden[f"out/{setting}/p"], rtol=1e-6)
    theirs = golden[f"out/{setting}/slot_hist"]
    for pair, histogram in enumerate(theirs):
        assert same_law(counted.slot_histogram[pair], histogram) > LEAST, pair
    assert follows(counted.slot_histogram[0], counted.slot_probabilities) > LEAST
    # The same bound refuses another law, and slots given to the wrong pair.
    wrong = MQARConfig(**(GOLDEN[setting] | {"power_a": 0.3}), num_examples=20_000)
    assert same_law(mqar_statistics(make_mqar(wrong, 7), wrong).slot_histogram[0], theirs[0]) < 1e-9
    if config.power_a != 1.0:
        assert same_law(counted.slot_histogram[-1], theirs[0]) < 1e-9


def test_fast_filler_keys_and_values_are_equally_likely():
    config = MQARConfig(vocab_size=38, num_examples=20_000, input_seq_len=32, num_kv_pairs=4)
    inputs, labels = (tensor.numpy() for tensor in (make_mqar(config, 3).inputs, make_mqar(config, 3).labels))
    for place in (0, 6):  # the first and the last pair
        assert follows(np.bincount(inputs[:, place], minlength=19)[1:19], np.full(18, 1 / 18)) > LEAST
        assert follows(np.bincount(inputs[:, place + 1])[19:], np.full(19, 1 / 19)) > LEAST
    filler = inputs[:, 8:][labels[:, 8:] == IGNORED]
    assert follows(np.bincount(filler, minlength=38), np.full(38, 1 / 38)) > LEAST


@pytest.mark.parametrize("mode", MODES)
def test_statistics_agree_with_each_other(mode):
    config = MQARConfig(vocab_size=99, num_examples=50, input_seq_len=40, num_kv_pairs=5, num_passes=2)
    counted = mqar_statistics(make_mqar(config, 1, mode=mode), config)
    assert counted.num_labels == 250
    assert (counted.slot_histogram.sum(1) == 50).all()
    expected = np.zeros(40, dtype=np.int64)
    for (pair, slot), count in np.ndenumerate(counted.slot_histogram):
        expected[10 + 2 * slot - 2 * pair] += count  # from the last time the pair was read
    np.testing.assert_array_equal(counted.distance_histogram, expected)


@pytest.mark.parametrize("mode", MODES)
def test_data_depend_on_nothing_but_the_seed(mode):
    config = MQARConfig(num_examples=5, vocab_size=200)
    torch.manual_seed(1)
    np.random.seed(1)
    first = make_mqar(config, 9, mode=mode)
    after = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(torch.get_rng_state(), after[0])
    assert (np.random.get_state()[1] == after[1]).all()
    torch.manual_seed(2)
    np.random.seed(2)
    again, other = make_mqar(config, 9, mode=mode), make_mqar(config, 10, mode=mode)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs, other.inputs)


def test_compat_follows_the_legacy_stream():
    """Three draws by hand, in the authors' order: keys of all rows, values of all rows, slots."""
    config = MQARConfig(20, 2, 12, 2, random_non_queries=False)
    rng = np.random.RandomState(4)
    keys = [rng.choice(np.arange(1, 10), 2, replace=False) for _ in range(2)]
    values = [rng.choice(np.arange(10, 20), 2, replace=False) for _ in range(2)]
    p = 0.01 * np.arange(1, 5) ** -0.99
    slots = [rng.choice(np.arange(4), 2, replace=False, p=p / p.sum()) for _ in range(2)]
    segment = make_mqar(config, 4, mode="compat")
    for row in range(2):
        assert segment.inputs[row, :4:2].tolist() == keys[row].tolist()
        assert segment.inputs[row, 1:4:2].tolist() == values[row].tolist()
        assert segment.inputs[row, 4 + 2 * slots[row]].tolist() == keys[row].tolist()
        assert segment.labels[row, 4 + 2 * slots[row]].tolist() == values[row].tolist()


def test_compat_filler_is_the_callers():
    config = MQARConfig(20, 3, 12, 2)
    filled = make_mqar(config, 4, mode="compat", filler=torch.Generator().manual_seed(5)).inputs
    blank = make_mqar(MQARConfig(20, 3, 12, 2, random_non_queries=False), 4, mode="compat").inputs
    tokens = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(5))
    assert torch.equal(filled, torch.where(blank == 0, tokens, blank))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_seq_len": 63}, "input_seq_len must be even, got 63"),
        ({"vocab_size": 64}, "vocab_size must exceed input_seq_len=64, got 64"),
        ({"num_kv_pairs": 17}, "num_kv_pairs=17 needs input_seq_len of at least 68, got 64"),
        ({"num_passes": 4}, "num_kv_pairs=8 with num_passes=4 needs input_seq_len of at least 80, got 64"),
        ({"num_kv_pairs": 0}, "num_kv_pairs must be at least 1, got 0"),
        ({"num_examples": 0}, "num_examples must be at least 1, got 0"),
        ({"num_passes": 0}, "num_passes must be at least 1, got 0"),
        ({"power_a": 0.0}, "power_a must give all 24 slots a positive probability"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MQARConfig(**options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "field", ["vocab_size", "num_examples", "input_seq_len", "num_kv_pairs", "num_passes"]
)
@pytest.mark.parametrize("value", [8.0, "8", None, True])
def test_only_integers_count(field, value):
    with pytest.raises(TypeError, match=f"{field} must be an integer, got {value!r}"):
        MQARConfig(**{field: value})


@pytest.mark.bad_input
@pytest.mark.parametrize("power_a", ["1", None, True])
def test_power_is_a_number(power_a):
    with pytest.raises(TypeError, match="power_a must be a number, got"):
        MQARConfig(power_a=power_a)


@pytest.mark.bad_input
def test_bad_arguments_are_named():
    config = MQARConfig()
    for seed in (-1, 2**32):
        for mode in MODES:
            with pytest.raises(ValueError, match=rf"seed must be .*got {seed}"):
                make_mqar(config, seed, mode=mode)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 1\.5"):
        make_mqar(config, 1.5)
    with pytest.raises(ValueError, match="mode must be one of fast, compat, got 'quick'"):
        make_mqar(config, 1, mode="quick")
    with pytest.raises(ValueError, match="filler is for mode='compat' only"):
        make_mqar(config, 1, filler=torch.Generator())
    with pytest.raises(TypeError, match="random_non_queries must be True or False, got 1"):
        MQARConfig(random_non_queries=1)


@pytest.mark.bad_input
def test_statistics_refuse_a_segment_of_another_setting():
    config = MQARConfig(200, 3, 32, 4)
    segment = make_mqar(config, 1)
    with pytest.raises(ValueError, match="segment must have length 64 as config says, got 32"):
        mqar_statistics(segment, MQARConfig(200, 3, 64, 4))
    labels = torch.full_like(segment.labels, IGNORED)
    labels[:, 3] = 5
    with pytest.raises(ValueError, match="must ask only for keys of its context"):
        mqar_statistics(TokenSegment(segment.inputs, labels, {}), config)
