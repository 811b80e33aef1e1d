"""Checkpoints load in our layout or the authors', or are refused in one line and change nothing."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gatework
from gatework import CheckpointError, load_checkpoint
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM

GOLDEN = Path(__file__).parent / "golden" / "zoology"


def model(**options):
    return GateworkForCausalLM(GateworkConfig(vocab_size=11, hidden_size=8, context_length=16, **options))


def state_of(module):
    """What would be stored: tied weights once."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    del state["lm_head.weight"]
    return state


def same(module, state):
    return all(torch.equal(module.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.fixture
def stored(tmp_path):
    """A model's weights and the file they are in."""
    state = state_of(model())
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    return state, path


def test_own_layout_from_every_kind_of_source(stored, tmp_path):
    state, path = stored
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "trainer.ckpt")
    for source in (state, path, str(path), tmp_path / "plain.pt", tmp_path / "trainer.ckpt"):
        loaded = model()
        load_checkpoint(loaded, source)
        assert same(loaded, state)
        assert torch.equal(loaded.lm_head.weight, state["model.embed_tokens.weight"])


def test_tensors_take_the_models_dtype(stored):
    state, path = stored
    loaded = model().double()
    load_checkpoint(loaded, path)
    assert loaded.lm_head.weight.dtype == torch.float64
    assert same(loaded, {name: tensor.double() for name, tensor in state.items()})


def test_the_authors_layout_with_and_without_the_tied_copy():
    stored = load_file(GOLDEN / "lm_attention.safetensors")
    state = {name.removeprefix("state/"): t for name, t in stored.items() if name.startswith("state/")}
    config = GateworkConfig(
        vocab_size=48, hidden_size=16, mixers=[{"name": "attention", "num_heads": 2}], learned_positions=24
    )
    words = state["backbone.embeddings.word_embeddings.weight"]
    for source in (state, {**state, "lm_head.weight": words}):
        loaded = GateworkForCausalLM(config)
        load_checkpoint(loaded, source)
        assert torch.equal(loaded.model.embed_tokens.weight, words)
        assert torch.equal(
            loaded.model.layers[1].mixer.qkv.weight, state["backbone.layers.1.sequence_mixer.Wqkv.weight"]
        )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.norm.bias"), "1 missing: model.norm.bias"),
        (lambda s: s.update({"extra.weight": torch.zeros(2)}), "1 unknown: extra.weight"),
        (
            lambda s: s.update({"model.norm.bias": torch.zeros(3)}),
            r"model.norm.bias has shape \(3,\), expected \(8,\)",
        ),
        (lambda s: s.update({"model.norm.bias": 3}), "'model.norm.bias' is a int, not a tensor"),
        (lambda s: s.clear(), "missing"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(change, message):
    loaded = model()
    before = state_of(loaded)
    state = state_of(model())
    change(state)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(loaded, state)
    assert "\n" not in str(error.value)
    assert same(loaded, before)


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.bad_input
def test_nothing_in_a_pickle_is_executed(tmp_path):
    trace = tmp_path / "executed"
    torch.save({"model.norm.bias": Malicious(trace)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malicious(trace)))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError, match="cannot be read safely"):
            load_checkpoint(model(), tmp_path / name)
    assert not trace.exists()


@pytest.mark.bad_input
def test_files_that_are_no_checkpoints(stored, tmp_path):
    _, path = stored
    data = path.read_bytes()
    files = {
        "empty.safetensors": b"",
        "truncated.safetensors": data[: len(data) // 2],
        "bomb.safetensors": (2**62).to_bytes(8, "little") + data[8:],
        "text.pt": b"these are no weights",
        "empty.pt": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name) as error:
            load_checkpoint(model(), tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        load_checkpoint(model(), tmp_path / "list.pt")
    for missing in (tmp_path / "nowhere.pt", tmp_path):
        with pytest.raises(CheckpointError, match="is not a file"):
            load_checkpoint(model(), missing)


@pytest.mark.bad_input
def test_mutated_files_load_or_are_refused(stored, tmp_path):
    _, path = stored
    data, rng = path.read_bytes(), random.Random(0)
    loaded, refused = model(), 0
    for index in range(300):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            # Mostly the header: a flip among the weights is another weight.
            mutated[rng.randrange(len(data) if index % 4 == 0 else 900)] = rng.randrange(256)
        (tmp_path / "mutated.safetensors").write_bytes(bytes(mutated))
        try:
            load_checkpoint(loaded, tmp_path / "mutated.safetensors")
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_mixers_alone_load_too():
    stored = load_file(GOLDEN / "mha.safetensors")
    state = {name.removeprefix("state/"): t for name, t in stored.items() if name.startswith("state/")}
    mixer = gatework.create_mixer("attention", 16, num_heads=2)
    load_checkpoint(mixer, state)
    assert torch.equal(mixer.qkv.bias, state["Wqkv.bias"])
