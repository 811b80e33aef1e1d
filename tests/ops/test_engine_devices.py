"""Engines that have never run on a GPU are not chosen there unasked; fake tensors have one everywhere."""

from __future__ import annotations

import inspect
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import gatework
from gatework import ops
from gatework.masks import Causal, CausalDocument, SlidingWindow
from gatework.ops import engines
from gatework.ops.attention import flex
from gatework.ops.attention import front as attention_front
from gatework.ops.recurrence.linear_recurrence import engine_fla
from gatework.ops.recurrence.selective_scan import front as selective_scan_front
from gatework.ops.sigmoid_attention import flash
from gatework.ops.sigmoid_attention import front as sigmoid_front
from gatework.ops.vision import neighborhood_engine
from tests.layers.sequence.test_every_mixer import OPTIONS, first_options
from tests.ops.test_engines import OPERATORS

CUDA = torch.device("cuda")
LENGTH, DIM = 600, 16
TOKENS, HEADS = (1, 2, LENGTH, DIM), (1, 2, LENGTH)
CHANNELS, STATES = (1, LENGTH, 4), (1, LENGTH, 3)

MASKS = (None, Causal(), SlidingWindow(9, 0), CausalDocument([200, 400]))

#: Of every operator with engines of other makers or of our own kernels: shapes, options to try, that engine.
#: Block-sparse attention is attention under a mask, whose numbers a fake tensor does not have.
KERNELS = {
    "attention": ([TOKENS] * 3, [{"mask": mask} for mask in MASKS], "flex"),
    "sigmoid_attention": (
        [TOKENS] * 3,
        [{}, {"is_causal": True}, {"mask": SlidingWindow(9, 0)}],
        "triton",
    ),
    "gated_linear_attention": ([TOKENS] * 3, [{}], "fla"),
    "delta_rule": ([TOKENS] * 3 + [HEADS], [{}], "fla"),
    "low_rank_recurrence": ([TOKENS] * 3 + [HEADS] + [TOKENS] * 2, [{}], "fla"),
    "selective_scan": ([CHANNELS, CHANNELS, (4, 3), STATES, STATES], [{}], "mamba_ssm"),
    "na1d": ([(1, LENGTH, 2, DIM)] * 3, [{"kernel_size": 7}], "natten"),
    "na2d": ([(1, 24, 25, 2, DIM)] * 3, [{"kernel_size": 7}], "natten"),
    "na3d": ([(1, 6, 10, 10, 2, DIM)] * 3, [{"kernel_size": 3}], "natten"),
}
#: What an operator is called in the table of what has run, where that is another name.
TABLE_NAME = dict.fromkeys(("na1d", "na2d", "na3d"), "neighborhood_attention")


class Called(Exception):  # noqa: N818 (no error)
    """The engine in question was called."""


def called(*arguments, **options):
    raise Called


@pytest.fixture(autouse=True)
def everything_is_installed(monkeypatch):
    """Whatever kernels need is there, and being called is all they do."""
    monkeypatch.setattr(flash, "_refused_device", lambda device: None)
    for table, name in ((attention_front.ENGINES, "flex"), (sigmoid_front.ENGINES, "triton")):
        monkeypatch.setitem(table, name, table[name]._replace(run=called))
    monkeypatch.setattr(engine_fla, "find_spec", lambda name: types.SimpleNamespace())
    for name in ("gated", "delta", "low_rank"):
        monkeypatch.setattr(engine_fla, name, called)
    monkeypatch.setattr(selective_scan_front, "_mamba_ssm_scan", called)
    module = types.SimpleNamespace(na1d=called, na2d=called, na3d=called)
    monkeypatch.setattr(neighborhood_engine, "natten_module", lambda: module)


def computed_on(device, name, options, **engine):
    """The outputs of an operator for tensors of a device that need not be there."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(shape, dtype=torch.bfloat16, device=device) for shape in KERNELS[name][0]]
        result = getattr(ops, name)(*inputs, **options, **engine)
    return result[0] if isinstance(result, tuple) else result


def every(table):
    return [
        pytest.param(name, options, id=f"{name}-{number}")
        for name, (_, choices, _) in table.items()
        for number, options in enumerate(choices)
    ]


def test_every_engine_has_its_line():
    listed = {name: list(tried) for name, tried in engines.TRIED.items()}
    expected = {name: list(names) for name, (names, _) in OPERATORS.items()}
    assert expected.pop("block_sparse_attention") == expected["attention"]
    assert listed == expected | {"neighborhood_attention": ["gatework", "natten"]}
    operators = {name for name in ops.__all__ if "engine" in inspect.signature(getattr(ops, name)).parameters}
    assert operators == {*OPERATORS}
    for name, (_, _, engine) in KERNELS.items():
        others = [each for each in engines.TRIED[TABLE_NAME.get(name, name)] if each != engine]
        assert all(each in engines.OF_TORCH or each.endswith("-numba") for each in others)
    for tried in engines.TRIED.values():
        assert {kind for where in tried.values() for kind in where} <= {"cpu", "interpreter", "cubin", "cuda"}


@pytest.mark.parametrize(("name", "options"), every(KERNELS))
def test_by_itself_an_operator_takes_on_a_gpu_only_what_was_tried_there(name, options, monkeypatch):
    engine = KERNELS[name][2]
    tried = engines.TRIED[TABLE_NAME.get(name, name)]
    monkeypatch.setitem(tried, engine, {kind: ran for kind, ran in tried[engine].items() if kind != "cuda"})
    assert not engines.may_be_chosen(TABLE_NAME.get(name, name), engine, CUDA)
    assert computed_on("cuda", name, options).device.type == "cuda"


@pytest.mark.parametrize(("name", "options"), every(KERNELS))
def test_by_name_it_can_be_had(name, options):
    argument = "backend" if name.startswith("na") else "engine"
    with pytest.raises(Called):
        computed_on("cuda", name, options, **{argument: KERNELS[name][2]})


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "selective_scan"])
def test_one_line_of_the_table_makes_it_the_default(name, monkeypatch):
    _, choices, engine = KERNELS[name]
    monkeypatch.setitem(engines.TRIED[TABLE_NAME.get(name, name)], engine, {"cuda": "some GPU"})
    assert flex.TRUSTED  # the masks below are among them
    for options in choices:
        if name == "attention" and options["mask"] is None:
            continue  # nothing to leave out: PyTorch's fused kernel
        with pytest.raises(Called):
            computed_on("cuda", name, options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        (name, engine)
        for name, (names, _) in OPERATORS.items()
        if name != "block_sparse_attention"
        for engine in names
        if engine.startswith("blocked") or engine.endswith("-numba")
    ],
)
def test_what_computes_on_the_cpu_refuses_a_gpu(name, engine):
    shapes = KERNELS["attention"][0] if "attention" in name else OPERATORS[name][1]
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(shape, device="cuda") for shape in shapes]
        with pytest.raises(
            ValueError, match=f"engine '{engine}' computes .*(on the|on a) CPU, got .* on cuda"
        ):
            getattr(ops, name)(*inputs, engine=engine)


#: Mixers that read a number from their tensors, which fake ones do not have.
READ_NUMBERS = {"random_lookups", "programmatic_lookups"}


@first_options
def test_mixers_keep_to_the_device_of_their_inputs(name, options):
    if name in READ_NUMBERS:
        pytest.skip("a fake tensor has no numbers to read")
    assert name in OPTIONS
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device("cuda"):
            mixer = gatework.create_mixer(name, DIM, **options)
        x = torch.empty(2, 33, DIM, device="cuda")
        y, state = mixer.prefill(x)
        token, state = mixer.step(x[:, 0], state)
        tensors = {"forward": mixer(x), "prefill": y, "step": token, **state}
    assert {key: tensor.device.type for key, tensor in tensors.items()} == dict.fromkeys(tensors, "cuda")
