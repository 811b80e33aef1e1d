"""The gate: its right numbers are right on sampled rows, and it sees every kind of wrong one."""

from __future__ import annotations

import pytest
import torch

from gatework.bench.attention import gate as gate_module
from gatework.bench.attention.gate import Gate, sample_rows
from gatework.bench.attention.plan import DTYPES, Problem
from gatework.bench.attention.problem import Shape, make_tensors
from gatework.masks import BlockSparse, Causal, SlidingWindow
from gatework.ops.attention import ENGINES, attention_reference
from gatework.ops.attention.options import Engine

RIGHT = ENGINES["reference"]
SHAPE = Shape(batch_size=2, num_heads=4, num_kv_heads=2)


def gate_of(mask, *, length=40, dtype="float32", shape=SHAPE):
    return Gate(make_tensors(Problem("m", "", length, 8, dtype), shape), mask)


@pytest.fixture
def engine(monkeypatch):
    """Register an engine that changes what the definition computes."""

    def register(change):
        def run(q, k, v, options):
            y, lse = RIGHT.run(q, k, v, options)
            return change(y, q, k, v), lse

        monkeypatch.setitem(ENGINES, "changed", Engine(run))
        return "changed"

    return register


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradients", [False, True])
def test_the_dense_engine_passes_in_every_dtype(dtype, gradients):
    verdict = gate_of(SlidingWindow(5, 3), dtype=dtype).check("dense", gradients=gradients)
    assert verdict.wrong is None
    assert len(verdict.errors) == (4 if gradients else 1)
    assert verdict.first_call > 0


def test_sampled_rows_have_the_very_numbers_of_the_whole(monkeypatch):
    monkeypatch.setattr(gate_module, "ALL_ROWS", 8)
    monkeypatch.setattr(gate_module, "SAMPLED_ROWS", 12)
    maps = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    mask = BlockSparse.from_map(maps, 8, group_size=2)  # each pair of heads has blocks of its own
    gate = gate_of(mask, dtype="float64")
    rows = gate._rows
    assert 0 in rows
    assert 39 in rows
    assert len(rows) < 20
    right = gate._definition(gradients=True)
    inputs = [tensor.requires_grad_() for tensor in gate._tensors[:3]]
    y, _ = attention_reference(*inputs, mask=mask)
    torch.testing.assert_close(right["output"], y[:, :, rows])
    gradients = torch.autograd.grad(y, inputs, gate._grad)
    for name, expected in zip("qkv", gradients, strict=True):
        torch.testing.assert_close(right[f"gradient of {name}"], expected)
    assert gate._grad.abs().sum((0, 1, 3)).count_nonzero() == len(rows)


@pytest.mark.parametrize("length", [0, 1, 2, 512, 513, 4097])
def test_rows_are_in_range_and_spread(length):
    rows = sample_rows(length)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == length if length <= 512 else 100 < len(rows) <= 128
    if length > 512:
        assert rows.diff().max() < 3 * length / 126


def test_a_wrong_output_is_seen(engine):
    name = engine(lambda y, q, k, v: y + 1e-3 * torch.nn.functional.one_hot(torch.tensor(17), 40)[:, None])
    verdict = gate_of(Causal()).check(name, gradients=False)
    assert verdict.wrong.startswith("output is off by")
    assert verdict.errors["output"] > verdict.tolerance


def test_a_nan_in_an_unsampled_row_is_seen(engine, monkeypatch):
    monkeypatch.setattr(gate_module, "ALL_ROWS", 8)
    monkeypatch.setattr(gate_module, "SAMPLED_ROWS", 8)
    gate = gate_of(Causal())
    row = next(row for row in range(40) if row not in gate._rows)
    name = engine(lambda y, q, k, v: y.index_fill(2, torch.tensor([row]), torch.nan))
    verdict = gate.check(name, gradients=False)
    assert verdict.wrong == "output has numbers that are not finite"


@pytest.mark.parametrize(("index", "letter"), [(0, "q"), (1, "k"), (2, "v")])
def test_a_wrong_gradient_behind_a_right_output_is_seen(engine, index, letter):
    def change(y, *tensors):
        extra = tensors[index].sum() * 1e-2
        return y + (extra - extra.detach())  # zero, with a gradient

    name = engine(change)
    gate = gate_of(SlidingWindow(4, 4))
    assert gate.check(name, gradients=False).wrong is None
    verdict = gate.check(name, gradients=True)
    assert verdict.wrong.startswith(f"gradient of {letter} is off by")


def test_a_mask_that_is_not_obeyed_is_seen(monkeypatch):
    leak = Engine(lambda q, k, v, options: RIGHT.run(q, k, v, options._replace(mask=None)))
    monkeypatch.setitem(ENGINES, "leak", leak)
    assert gate_of(SlidingWindow(39, 38)).check("leak", gradients=False).wrong is not None
