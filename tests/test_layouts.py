"""Layouts rename, split, join and move numbers, of weights and of gradients; marks say which one fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gatework
from gatework.checkpoints import CheckpointError, convert_checkpoint, find_layout, load_checkpoint
from gatework.layers.sequence.mixer import Mixer
from gatework.layouts import (
    OWN,
    Layout,
    change,
    join,
    layouts_of,
    resize_bilinear,
    resize_square_tokens,
    split,
    to_ours,
)
from tests.toy_model import WRITERS, Toy


def toy(seed=0, **options):
    torch.manual_seed(seed)
    model = Toy(**options)
    model(torch.randn(4, 3, 6, 6))  # running statistics other than the initial ones
    return model


def same(ours, others):
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_layout_gives_the_same_weights(kind):
    trained, other = toy(), Toy()
    state = trained.state_dict()
    load_checkpoint(other, WRITERS[kind](state))
    kept = () if kind == "timm" else ("stem_norm.num_batches_tracked",)
    assert same(
        {n: t for n, t in other.state_dict().items() if n not in kept},
        {n: t for n, t in state.items() if n not in kept},
    )
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(trained.eval()(x), other.eval()(x))
    assert find_layout(other, WRITERS[kind](state)).name == kind


@pytest.mark.parametrize("kind", WRITERS)
def test_gradients_go_the_same_way(kind):
    model = toy()
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    layout = find_layout(model, WRITERS[kind](model.state_dict()))
    converted = layout.to_ours(WRITERS[kind](gradients))
    assert same(converted, gradients)
    assert layout.to_ours({}) == {}


def test_sources_say_what_each_tensor_is_made_of():
    model = toy()
    conversion = convert_checkpoint(model, WRITERS["tensorflow"](model.state_dict()))
    assert conversion.layout.name == "tensorflow"
    assert conversion.ignored == ("global_step",)
    assert conversion.kept == ("stem_norm.num_batches_tracked",)
    sources = conversion.sources()
    assert sources["blocks.1.kv.weight"] == ("block_01/attention/k/weight", "block_01/attention/v/weight")
    assert sources["stem.weight"] == ("stem/conv/kernel",)
    assert set(sources) == model.state_dict().keys() - {"stem_norm.num_batches_tracked"}
    conversion = convert_checkpoint(model, WRITERS["timm"](model.state_dict()))
    assert conversion.sources()["blocks.0.kv.bias"] == ("blocks.0.attn.qkv.bias",)


def test_a_conversion_that_looks_at_values_still_tells_the_names():
    def refuse(weights):
        if not all(tensor.is_floating_point() for tensor in weights.values()):
            raise ValueError("no")
        return weights

    layout = Layout("x", renames={"a": "b"}, convert=refuse, ignore=("c",))
    assert layout.sources({"a": (2,), "c": (1,), "d": ()}) == {"b": ("a",), "d": ("d",)}


words = st.text("abcxyz", min_size=1, max_size=4)
numbers = st.integers(0, 120)


@given(
    table=st.dictionaries(st.tuples(words, words), st.tuples(words, words), min_size=1, max_size=6),
    indices=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4, unique=True),
)
def test_renaming_there_and_back(table, indices):
    """A table of patterns and its inverse undo each other, for all numbers."""
    there = {f"{a}.{{i}}.{b}.{{j}}.w": f"{c}/{{j}}/{d}_{{i}}/{a}{b}" for (a, b), (c, d) in table.items()}
    back = {ours: theirs for theirs, ours in there.items()}
    if len(back) < len(there):
        return
    names = [theirs.replace("{i}", str(i)).replace("{j}", str(j)) for theirs in there for i, j in indices]
    weights = {name: torch.tensor(index) for index, name in enumerate(names)}
    renamed = Layout("there", renames=there).to_ours(weights)
    assert len(renamed) == len(weights)
    assert not renamed.keys() & weights.keys()
    assert same(Layout("back", renames=back).to_ours(renamed), weights)


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4), dim=st.integers(-2, 1))
def test_split_and_join_undo_each_other(sizes, dim):
    shape = [3, 3]
    shape[dim] = sum(sizes)
    weights = {"a.07.qkv": torch.randn(shape), "rest": torch.ones(1)}
    parts = [f"a.{{i}}.{index}" for index in range(len(sizes))]
    cut = split(weights, "a.{i}.qkv", parts, sizes, dim)
    assert cut.keys() == {"rest", *(f"a.7.{index}" for index in range(len(sizes)))}
    assert same(join(cut, parts, "a.{i}.qkv", dim), {"rest": weights["rest"], "a.7.qkv": weights["a.07.qkv"]})


def test_names_and_patterns():
    layout = Layout(
        "x",
        marks=("a|b", "blocks.{i}.w"),
        without=("old.{rest}",),
        renames={"s.{i}.{rest}": "t.{rest}.{i}", "s.1.w": "exact", "{name}.{name}.x": "twice.{name}"},
    )
    assert layout.rename("s.1.w") == "exact"
    assert layout.rename("s.002.w.b") == "t.w.b.2"
    assert layout.rename("q.r.q.r.x") == "twice.q.r"
    assert layout.rename("q.r.x") == "q.r.x"
    assert layout.rename("s.x.w") == "s.x.w"
    assert layout.missing(["b", "blocks.3.w"]) == []
    assert layout.missing(["c", "blocks.x.w", "old.1"]) == ["a|b", "blocks.{i}.w", "no old.{rest}"]
    assert change({"a.1": torch.ones(2)}, "a.{i}", torch.neg)["a.1"].sum() == -2


@pytest.mark.bad_input
def test_wrong_layouts_are_named():
    with pytest.raises(ValueError, match=r"'b\.\{j\}' has \['j'\], 'a\.\{i\}' has not"):
        Layout("x", renames={"a.{i}": "b.{j}"})
    with pytest.raises(TypeError, match="marks must be a tuple of names, got 'a'"):
        Layout("x", marks="a")
    with pytest.raises(ValueError, match="b differs from a, and both are c here"):
        Layout("x", renames={"a": "c", "b": "c"}).to_ours({"a": torch.ones(1), "b": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"w\.0 is made of 2 tensors, and k\.\{i\} is missing"):
        join({"q.0": torch.ones(1)}, ("q.{i}", "k.{i}"), "w.{i}")
    for sizes, said in ((None, "2"), ((1, 1), r"\[1, 1\]"), ((3,), r"\[3\]")):
        with pytest.raises(ValueError, match=f"has length 3, and cannot be cut into {said}"):
            split({"w": torch.ones(3)}, "w", ("a", "b"), sizes)

    class Twice(nn.Linear):
        layouts = (Layout("x"), Layout("x"))

    with pytest.raises(ValueError, match="Twice has two layouts called 'x'"):
        layouts_of(Twice(1, 1))


def test_position_tables_are_resized():
    table = torch.randn(2, 5, 5)
    expected = nn.functional.interpolate(table[None], (9, 7), mode="bilinear", align_corners=False)[0]
    assert torch.equal(resize_bilinear(table, (2, 9, 7)), expected)
    assert resize_bilinear(table.half(), (2, 3, 3)).dtype == torch.float16
    tokens = torch.randn(1, 1 + 9, 4)
    resized = resize_square_tokens(tokens, (1, 17, 4), prefix_tokens=1)
    assert torch.equal(resized[:, 0], tokens[:, 0])
    maps = tokens[:, 1:].unflatten(1, (3, 3)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(maps, (4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), expected)


@pytest.mark.bad_input
def test_tables_that_cannot_be_resized():
    for table, shape in (
        (torch.ones(2, 3, 3), (3, 3, 3)),
        (torch.ones(3), (3,)),
        (torch.ones(3, 3), (1, 3, 3)),
    ):
        with pytest.raises(ValueError, match="cannot become"):
            resize_bilinear(table, shape)
    for size, shape in (
        ((1, 8, 4), (1, 9, 4)),
        ((1, 9, 4), (1, 9, 5)),
        ((1, 9, 4), (1, 10, 4)),
        ((9, 4), (1, 9, 4)),
    ):
        with pytest.raises(ValueError, match="cannot become"):
            resize_square_tokens(torch.ones(size), shape)


class Named(Mixer):
    """As users write them: a table of names, and nothing else."""

    official_names = {"w": "weight", "also": "weight"}  # noqa: RUF012

    def __init__(self, dim=3):
        super().__init__(dim)
        self.weight = nn.Parameter(torch.randn(dim))


class Overriding(Named):
    """As users write them where tensors change shape."""

    def convert_official(self, state_dict):
        return {name: 2 * tensor for name, tensor in super().convert_official(state_dict).items()}


def test_mixers_of_users_need_no_layouts():
    mixer, weight = Named(), torch.randn(3)
    for name in ("w", "also", "weight"):
        load_checkpoint(mixer, {name: weight})
        assert torch.equal(mixer.weight, weight)
    assert [layout.name for layout in layouts_of(mixer)] == [OWN, "official"]
    assert torch.equal(mixer.convert_official({"w": weight})["weight"], weight)
    mixer = Overriding()
    load_checkpoint(mixer, {"also": weight})
    assert torch.equal(mixer.weight, 2 * weight)
    load_checkpoint(mixer, {"weight": weight})
    assert torch.equal(mixer.weight, weight)
    assert torch.equal(to_ours(layouts_of(mixer), {"weight": weight})["weight"], 2 * weight)


def test_an_override_below_layouts_counts():
    class Mine(type(gatework.create_mixer("gated_delta_net", 8, num_heads=2))):
        def convert_official(self, state_dict):
            return {
                name: tensor for name, tensor in super().convert_official(state_dict).items() if name != "E"
            }

    mixer = Mine(8, num_heads=2)
    state = {name: tensor + 1 for name, tensor in mixer.state_dict().items()}
    load_checkpoint(mixer, {**state, "D": torch.ones(2), "E": torch.ones(2)})
    assert same(mixer.state_dict(), state)


def test_only_one_foreign_layout_may_fit():
    layouts = (Layout("a", marks=("x",)), Layout("b", marks=("x",)))
    with pytest.raises(ValueError, match="they fit more than one layout: a, b"):
        to_ours(layouts, {"x": torch.ones(1)})


def test_a_decoder_loads_its_mixers_layouts():
    from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM

    config = GateworkConfig(
        vocab_size=7, hidden_size=8, mixers=[{"name": "attention", "num_heads": 2}, "hyena"]
    )
    model, other = (GateworkForCausalLM(config) for _ in range(2))
    written = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.embed_tokens", "backbone.embeddings.word_embeddings").replace(
            "model.norm", "backbone.ln_f"
        )
        name = name.replace("model.layers", "backbone.layers").replace("mixer_norm", "norm1")
        name = name.replace("channel_norm", "norm2").replace("channel_mixer", "state_mixer")
        name = name.replace("0.mixer.qkv", "0.sequence_mixer.Wqkv").replace("0.mixer.", "0.sequence_mixer.")
        name = name.replace("1.mixer.", "1.sequence_mixer.mixer.")
        for theirs, ours in {
            **model.model.layers[1].mixer.official_names,
            "filter_fn.implicit_filter.1.freq": "freq",
        }.items():
            name = (
                name.replace(f"sequence_mixer.mixer.{ours}", f"sequence_mixer.mixer.{theirs}")
                if name.endswith("." + ours)
                else name
            )
        for index in range(5):
            name = name.replace(f"filter_layers.{index}.", f"filter_fn.implicit_filter.{2 * index}.")
        written[name] = tensor
    with pytest.raises(CheckpointError, match="E"):
        load_checkpoint(other, {**written, "backbone.layers.0.sequence_mixer.E": torch.ones(1)})
    load_checkpoint(other, written)
    assert same(other.state_dict(), model.state_dict())
