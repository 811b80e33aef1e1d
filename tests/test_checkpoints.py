"""Checkpoints load in our layout or the authors', or are refused in one line and change nothing."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gatework
from gatework import CheckpointError, load_checkpoint
from gatework.checkpoints import convert_checkpoint
from gatework.layouts import OWN, Layout
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from tests.toy_model import WRITERS, Toy

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


def loads(source, state, **options):
    """Whether a model has the weights of ``state`` afterwards."""
    loaded = model()
    load_checkpoint(loaded, source, **options)
    return same(loaded, state)


def refusal(source, into=None, **options):
    """The error of loading, which is one line and changes nothing."""
    loaded = model() if into is None else into
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(loaded, source, **options)
    assert same(loaded, before)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema"])
def test_wrapped_weights(stored, tmp_path, key):
    state, _ = stored
    wrapped = {
        key: OrderedDict((f"module.{name}", nn.Parameter(tensor)) for name, tensor in state.items()),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, names=["a"]),
        "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": []},
    }
    for old_format in (False, True):
        torch.save(wrapped, tmp_path / "a.pth", _use_new_zipfile_serialization=not old_format)
        assert loads(tmp_path / "a.pth", state)
    assert loads(wrapped, state)
    assert loads({"model": wrapped}, state)
    assert loads({f"net.backbone.{name}": tensor for name, tensor in state.items()}, state)
    averaged = {f"module.{name}": tensor for name, tensor in state.items()}
    assert loads({**averaged, "n_averaged": torch.tensor(3)}, state)


def test_one_of_several_sets_of_weights_is_named(stored):
    state, _ = stored
    other = state_of(model())
    both = {"model": other, "model_ema": state, "state_dict_ema": None, "ema": {}}
    message = refusal(both)
    assert "several sets of weights: choose with entry='model' or entry='model_ema'" in message
    assert loads(both, state, entry="model_ema")
    assert loads(both, other, entry="model")
    assert loads({"deep": state}, state, entry="deep")
    assert "has no entry 'nowhere'" in refusal(both, entry="nowhere") or "several" in refusal(
        both, entry="nowhere"
    )
    assert "has no entry 'nowhere'" in refusal(state, entry="nowhere")
    assert "holds a NoneType, not a state dict" in refusal(both, entry="state_dict_ema")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_and_folders(stored, tmp_path, suffix):
    state, _ = stored
    folder = tmp_path / "folder"
    folder.mkdir()
    name = "model" if suffix == "safetensors" else "pytorch_model"
    write = save_file if suffix == "safetensors" else torch.save
    names, files = sorted(state), {}
    for shard in range(3):
        file = f"{name}-0000{shard + 1}-of-00003.{suffix}"
        part = {n: state[n] for n in names[shard::3]}
        write(part, folder / file)
        files |= dict.fromkeys(part, file)
    index = folder / f"{name}.{suffix}.index.json"

    def write_index(weight_map):
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))

    write_index(files)
    assert loads(index, state)
    assert loads(folder, state)
    for outside in ("../x.bin", "/etc/passwd", "a/b.bin", "..", "", "a\\b"):
        write_index({**files, "x": outside})
        assert f"names {outside!r}, outside its folder" in refusal(index)
    write_index({**files, "x": "model-9.bin"})
    assert "incomplete: its shard model-9.bin is missing" in refusal(folder)
    write_index({**files, "x": files[names[0]]})
    assert f"wrong: x is not in {files[names[0]]}" in refusal(folder)
    write_index({n: file for n, file in files.items() if n != names[0]})
    assert f"wrong: {names[0]} is in, but should not be in, {files[names[0]]}" in refusal(folder)
    for broken in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"):
        index.write_text(broken)
        assert "checkpoint index" in refusal(index)
    write_index(files)
    (folder / files[names[0]]).unlink()
    assert f"its shard {files[names[0]]} is missing" in refusal(folder)
    write(state, folder / f"{name}.{suffix}")
    assert loads(folder, state)


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_three_layouts(tmp_path, kind):
    trained, loaded = Toy(), Toy()
    written = WRITERS[kind](trained.state_dict())
    save_file({name: tensor.clone() for name, tensor in written.items()}, tmp_path / "a.safetensors")
    torch.save({"model": {f"module.{name}": tensor for name, tensor in written.items()}}, tmp_path / "a.pth")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        load_checkpoint(loaded, path)
        assert same(loaded, trained.state_dict())
        load_checkpoint(loaded, path, layout=kind)
        other = next(name for name in WRITERS if name != kind)
        assert refusal(path, loaded, layout=other)
        assert refusal(path, loaded, layout=OWN)
    assert "layout 'x' is none of Toy, which has 'gatework', 'tensorflow'" in refusal(
        written, loaded, layout="x"
    )


class TwoFit(nn.Linear):
    layouts = (
        Layout("one", marks=("w",), renames={"w": "weight", "b": "bias"}),
        Layout("two", marks=("w", "b"), renames={"w": "weight", "b": "bias"}),
    )


@pytest.mark.bad_input
def test_none_or_several_layouts():
    weights = {"w": torch.ones(2, 2), "b": torch.ones(2)}
    message = refusal(weights, TwoFit(2, 2))
    assert message == "checkpoint fits several layouts of TwoFit: choose with layout=, of 'one', 'two'"
    loaded = TwoFit(2, 2)
    load_checkpoint(loaded, weights, layout="two")
    assert loaded.weight.sum() == 4

    state = Toy().state_dict()
    written = WRITERS["torchvision"](state)
    written["stem.weight"] = written.pop("features.0.weight")
    message = refusal(written, Toy())
    assert message == (
        "checkpoint fits no layout of Toy, which has 'gatework', 'tensorflow', 'timm', 'torchvision'; "
        "nearest is 'torchvision': its marks features.0.weight are missing"
    )
    written = {name: tensor for name, tensor in state.items() if name != "stem.bias"}
    message = refusal(written, Toy())
    assert message.endswith("nearest is 'gatework': 1 missing: stem.bias")
    written = {**WRITERS["timm"](state), "other": torch.ones(1)}
    assert refusal(written, Toy()) == "checkpoint does not fit Toy: 1 unknown: other"


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [*WRITERS, OWN])
def test_another_variants_file_is_named(kind):
    for options in ({"dim": 12}, {"depth": 3}, {"depth": 1}):
        state = Toy(**options).state_dict()
        message = refusal(WRITERS[kind](state) if kind != OWN else state, Toy())
        if kind in ("timm", "torchvision") and "dim" in options:
            assert "perhaps of another size: blocks.0.qkv.weight has length 36" in message
        elif not (kind == "torchvision" and options == {"depth": 3}):  # its third block has no name of ours
            assert message.startswith("checkpoint is of another size than Toy: ")
    state = Toy(dim=12).state_dict()
    assert "blocks.0.kv.bias has shape (24,), expected (16,)" in refusal(state, Toy())


@pytest.mark.parametrize("kind", [*WRITERS, OWN])
def test_position_tables_and_the_head_change_by_named_arguments_only(kind):
    large, small = Toy(window=5, num_classes=7), Toy()
    state = large.state_dict()
    written = WRITERS[kind](state) if kind != OWN else state
    message = refusal(written, small)
    assert (
        "2 position tables of another shape: blocks.0.table has shape (2, 9, 9), expected (2, 5, 5)"
        in message
    )
    assert "(resize_positions=True resizes them)" in message
    assert "2 of the head not as the model's: head.bias has shape (7,), expected (5,)" in message
    assert "(drop_head=True loads all but the head)" in message
    assert "position" not in refusal(written, small, resize_positions=True)
    assert "head" not in refusal(written, small, drop_head=True)
    head = small.head.weight.clone()
    load_checkpoint(small, written, resize_positions=True, drop_head=True)
    assert torch.equal(small.head.weight, head)
    assert torch.equal(small.stem.weight, large.stem.weight)
    expected = nn.functional.interpolate(large.blocks[1].table[None], (5, 5), mode="bilinear")[0]
    assert torch.equal(small.blocks[1].table, expected)
    conversion = convert_checkpoint(small, written, resize_positions=True, drop_head=True)
    assert conversion.resized == {f"blocks.{index}.table": (2, 9, 9) for index in range(2)}
    assert set(conversion.dropped) == {"head.weight", "head.bias"}
    # Without the head in the file, the argument is needed as well.
    written = {
        name: tensor for name, tensor in written.items() if not name.startswith(("head", "classifier"))
    }
    assert "head.bias is missing" in refusal(written, Toy(window=5)) or kind == OWN
    load_checkpoint(Toy(window=5), written, drop_head=True)


@pytest.mark.bad_input
def test_no_head_to_leave_out(stored):
    assert "drop_head=True: layout 'gatework' of GateworkForCausalLM names no head" in refusal(
        stored[0], drop_head=True
    )


class Numbers(nn.Module):
    """One tensor of each kind."""

    def __init__(self):
        super().__init__()
        self.register_buffer("f", torch.ones(1))
        self.register_buffer("i", torch.ones(1, dtype=torch.long))
        self.register_buffer("b", torch.ones(1, dtype=torch.bool))
        self.register_buffer("c", torch.ones(1, dtype=torch.complex64))


@pytest.mark.bad_input
def test_other_kinds_of_numbers_are_refused():
    state = Numbers().state_dict()
    load_checkpoint(Numbers(), {**state, "f": state["f"].bfloat16(), "i": state["i"].int()})
    load_checkpoint(Numbers(), {**state, "f": state["f"].to(torch.float8_e4m3fn)})
    for name in state:
        for other in state:
            if name != other:
                message = refusal({**state, name: state[other]}, Numbers())
                assert f"1 of another kind of numbers: {name} holds " in message
    for odd in (torch.ones(1, device="meta"), torch.ones(1).to_sparse()):
        assert "not one that holds its numbers" in refusal({**state, "f": odd}, Numbers())


@pytest.mark.bad_input
def test_a_model_without_memory_is_refused():
    with torch.device("meta"):
        empty = Toy()
    state = Toy().state_dict()
    with pytest.raises(CheckpointError, match=r"Toy has no memory for stem\.weight, .* call model.to_empty"):
        load_checkpoint(empty, state)
    assert convert_checkpoint(empty, state).weights.keys() == state.keys()
    del state["stem.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: stem\.bias"):
        load_checkpoint(empty, state)


@pytest.mark.bad_input
def test_names_that_are_none(stored):
    state, _ = stored
    for name in (3, "x" * 2000, None):
        assert "which is no name of a tensor" in refusal({**state, name: torch.ones(1)})


def test_tensors_with_attributes_load(stored, tmp_path):
    """As distributed training writes them."""
    state, _ = stored
    marked = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in marked.values():
        tensor.mark = "x"
    torch.save(marked, tmp_path / "a.pt")
    assert loads(tmp_path / "a.pt", state)


class Bomb:
    """Asks for memory when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def old_file(tensor, claimed):
    """A file from before PyTorch 1.6 whose storage claims another length."""
    file = io.BytesIO()
    torch.save({"a": tensor}, file, _use_new_zipfile_serialization=False)
    length = b"M" + tensor.numel().to_bytes(2, "little")
    data = file.getvalue()
    assert data.count(length) >= 1
    return data.replace(length, b"J" + claimed.to_bytes(4, "little"))


@pytest.mark.bad_input
def test_no_file_takes_more_memory_than_it_has(tmp_path):
    torch.save({"a": torch.ones(1).expand(2**34)}, tmp_path / "expanded.pt")
    torch.save({"a": torch.ones(1).expand(2**34)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": Bomb(bytearray, 2**33)}, tmp_path / "bytes.pt")
    torch.save({"a": Bomb(torch.FloatTensor, 2**33)}, tmp_path / "old_tensor.pt")
    torch.save({"a": Bomb(torch.Tensor, 2**24)}, tmp_path / "tensor.pt")
    (tmp_path / "claim.pt").write_bytes(old_file(torch.ones(1000), 2**30))
    for path in sorted(tmp_path.glob("*.pt")):
        assert "cannot be read safely" in refusal(path), path
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "shape.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with open(tmp_path / "sparse.safetensors", "wb") as file:
        file.write((2**31).to_bytes(8, "little"))
        file.truncate(2**32)
    with zipfile.ZipFile(tmp_path / "compressed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**24))
    for name in ("shape.safetensors", "sparse.safetensors", "compressed.pt"):
        assert "cannot be read safely" in refusal(tmp_path / name), name


@pytest.mark.bad_input
def test_mutated_pickles_load_or_are_refused(stored, tmp_path):
    state, _ = stored
    rng = random.Random(1)
    for old_format in (False, True):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not old_format)
        data, refused = (tmp_path / "a.pt").read_bytes(), 0
        for _ in range(100):
            mutated = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                mutated[rng.randrange(min(len(data), 2000))] = rng.randrange(256)
            (tmp_path / "b.pt").write_bytes(bytes(mutated))
            try:
                load_checkpoint(model(), tmp_path / "b.pt")
            except CheckpointError:
                refused += 1
        assert refused > 50


@pytest.mark.bad_input
def test_a_conversion_that_fails_is_said_in_one_line():
    state = WRITERS["tensorflow"](Toy().state_dict())
    state["block_00/attention/o/weight"] = torch.ones(3)
    message = refusal(state, Toy())
    assert message.startswith("checkpoint cannot be converted from layout 'tensorflow'")
    del state["block_00/attention/k/bias"]
    state["block_00/attention/o/weight"] = torch.ones(2, 4, 8)
    assert "is made of 2 tensors, and blocks.{i}.k.bias is missing" in refusal(state, Toy())
