"""Operators with an ``engine`` argument take the same kinds of names, and refuse others alike."""

from __future__ import annotations

import inspect

import pytest
import torch

from gatework import ops
from gatework.ops.attention.front import ENGINES as ATTENTION
from gatework.ops.recurrence.linear_recurrence.checks import ENGINES as LINEAR_RECURRENCE
from gatework.ops.recurrence.selective_scan.front import ENGINES as SELECTIVE_SCAN
from gatework.ops.recurrence.wkv import ENGINES as WKV
from gatework.ops.sigmoid_attention import ENGINES as SIGMOID_ATTENTION

#: What a name may begin with: how it is computed, or the library whose kernels compute it.
HOW = {"reference", "dense", "blocked", "chunked", "flex", "triton", "fla", "mamba_ssm"}
#: What it may end with: what the same is computed with.
WITH = {"", "torch", "numba"}

TOKENS, HEADS, CHANNELS = (1, 2, 5, 4), (1, 2, 5), (1, 5, 4)

#: Operators: their engines, and the shapes of small inputs.
OPERATORS = {
    "attention": (ATTENTION, [TOKENS] * 3),
    "block_sparse_attention": (ATTENTION, [TOKENS] * 3),
    "sigmoid_attention": (SIGMOID_ATTENTION, [TOKENS] * 3),
    "gated_linear_attention": (LINEAR_RECURRENCE, [TOKENS] * 3),
    "delta_rule": (LINEAR_RECURRENCE, [TOKENS] * 3 + [HEADS]),
    "low_rank_recurrence": (LINEAR_RECURRENCE, [TOKENS] * 6),
    "selective_scan": (SELECTIVE_SCAN, [CHANNELS, CHANNELS, (4, 3), (1, 5, 3), (1, 5, 3)]),
    "wkv": (WKV, [CHANNELS, CHANNELS, (4,), (4,)]),
}


def computed(name, **options):
    """The outputs of an operator for small negative numbers, which suit decays and steps."""
    gen = torch.Generator().manual_seed(0)
    inputs = [-torch.rand(shape, generator=gen) for shape in OPERATORS[name][1]]
    if name == "block_sparse_attention":
        inputs.append(torch.ones(1, 2, 1, 1, dtype=torch.bool))
    result = getattr(ops, name)(*inputs, **options)
    return result[0] if isinstance(result, tuple) else result


def test_every_operator_with_an_engine_is_listed():
    functions = ((name, getattr(ops, name)) for name in ops.__all__)
    found = {name for name, function in functions if "engine" in inspect.signature(function).parameters}
    assert found == OPERATORS.keys()


@pytest.mark.parametrize("name", OPERATORS)
def test_names_say_how_and_with_what(name):
    engines, _ = OPERATORS[name]
    assert next(iter(engines)) == "reference"
    for engine in engines:
        how, _, with_what = engine.partition("-")
        assert how in HOW, f"{engine} of {name}"
        assert with_what in WITH, f"{engine} of {name}"
    default = inspect.signature(getattr(ops, name)).parameters["engine"].default
    assert default is None


@pytest.mark.parametrize("name", OPERATORS)
def test_the_definition_and_the_default_agree(name):
    torch.testing.assert_close(computed(name), computed(name, engine="reference"), rtol=1e-4, atol=1e-5)


@pytest.mark.bad_input
@pytest.mark.parametrize("wrong", ["cuda", "Reference", "", 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_unknown_engines_are_refused_alike(name, wrong):
    message = f"engine must be one of {', '.join(OPERATORS[name][0])}, got {wrong!r}"
    with pytest.raises(TypeError if wrong == 3 else ValueError) as caught:
        computed(name, engine=wrong)
    assert str(caught.value).removesuffix("; did you mean 'reference'?") == message


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        *((name, "auto", None) for name in OPERATORS),
        ("gated_linear_attention", "torch", "chunked"),
        ("delta_rule", "torch", "chunked"),
        ("low_rank_recurrence", "torch", "chunked"),
    ],
)
def test_older_names_still_work(name, old, new):
    assert torch.equal(computed(name, engine=old), computed(name, engine=new))


@pytest.mark.parametrize("name", ["selective_scan", "wkv"])
def test_the_older_name_of_the_compiled_scans(name):
    pytest.importorskip("numba")
    assert torch.equal(computed(name, engine="kernels"), computed(name, engine="chunked-numba"))
