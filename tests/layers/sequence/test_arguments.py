"""Every number and flag of every mixer's constructor: an impossible value is one error that names it."""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing

import pytest
import torch

import gatework

DIM = 16

#: Options without which a mixer cannot be made at this width.
SMALL = {
    "mamba2": {"head_dim": 8},
    "rwkv5": {"head_dim": 8},
    "rwkv7": {"head_dim": 8},
}
NUMBERS = (0, -1, 1.5, float("nan"), float("inf"), True, "3", None)
FLAGS = (0, 1, "no", None)

#: Values at the edge that mean something, by argument, whatever the mixer.
ALLOWED = {
    "conv_size": {0},  # no convolution; other mixers than these refuse it
    "window_size": {0},  # only the present token
    "num_random": {0},  # no random block
    "seed": {0},
    "layer_index": {0},
    "dropout": {0},
    "eps": {0},  # added to a sum that may do without
    "penalty": {0},
    "share": {0},  # of the positions: none
    "dt_floor": {0},  # no lower bound
    "num_selected_blocks": {0},  # all earlier tokens
    "num_inner_mlps": {0},  # no square map between the first and the last
    "shift": {0, -1},  # what the window decays to
    "min_log_decay": {0, -1},
    "kernel_size": {-1},  # a long convolution, as the authors write it
}
#: Arguments that 1.5 is too large for.
BELOW = {"dropout", "share", "min_log_decay", "dt_min"}
#: Where an argument that others may set to 0 must not be.
NOT_ALLOWED = {
    ("mamba", "conv_size"),
    ("mamba2", "conv_size"),
    ("nsa", "window_size"),
    ("ttt_linear", "conv_size"),
    ("ttt_mlp", "conv_size"),
}


@functools.cache
def hints_of(name: str) -> dict[str, object]:
    """Type of each argument of a mixer's constructor."""
    factory = gatework.registry.mixer_entry(name).load()
    hints = typing.get_type_hints(factory.__init__)
    return {argument: hints[argument] for argument in inspect.signature(factory).parameters}


def takes(kind: type, name: str, argument: str) -> bool:
    hint = hints_of(name)[argument]
    return hint is kind or (isinstance(hint, types.UnionType) and kind in typing.get_args(hint))


def arguments(kind: type, name: str) -> list[str]:
    """Arguments of a mixer that take a whole number, a number or a flag."""
    return [argument for argument in hints_of(name) if takes(kind, name, argument)]


def make(name: str, **options):
    base = SMALL.get(name, {})
    if options.get("num_heads") is not None and "num_heads" in hints_of(name):
        base = {}  # a number of heads takes the place of their width
    with torch.device("meta"):
        return gatework.create_mixer(name, **{"dim": DIM, **base, **options})


def is_meant(name: str, argument: str, value: object) -> bool:
    """Whether the value is none of the mistakes."""
    if value is None:
        return takes(type(None), name, argument)
    if isinstance(value, bool | str) or value != value:
        return False
    if value == 1.5 and takes(float, name, argument):
        return argument not in BELOW
    return (name, argument) not in NOT_ALLOWED and value in ALLOWED.get(argument, ())


@pytest.mark.bad_input
@pytest.mark.parametrize("name", gatework.list_mixers())
def test_impossible_numbers_are_named(name):
    make(name)
    for argument in dict.fromkeys([*arguments(int, name), *arguments(float, name)]):
        for value in NUMBERS:
            if value is None and argument in SMALL.get(name, {}):
                continue  # the default is too wide here
            if is_meant(name, argument, value):
                make(name, **{argument: value})
                continue
            wrong_type = not isinstance(value, int | float) or isinstance(value, bool)
            wrong_type |= isinstance(value, float) and not takes(float, name, argument)
            with pytest.raises(TypeError if wrong_type else ValueError, match=rf"\b{argument}\b.*got "):
                make(name, **{argument: value})


@pytest.mark.bad_input
@pytest.mark.parametrize("name", gatework.list_mixers())
def test_flags_are_true_or_false(name):
    for argument in arguments(bool, name):
        for value in FLAGS:
            with pytest.raises(TypeError, match=f"{argument} must be True or False, got "):
                make(name, **{argument: value})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "dt_limit must be two numbers"),
        ((1.0,), "dt_limit must be two numbers"),
        ((-1.0, 2.0), r"dt_limit\[0\] must be at least 0, got -1"),
        ((1.0, 0.5), r"dt_limit\[1\] must be at least 1.0, got 0.5"),
        ((0.0, float("nan")), r"dt_limit\[1\] must be at least 0.0, got nan"),
    ],
)
def test_ranges_are_two_growing_numbers(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make("mamba2", dt_limit=value)
    make("mamba2", dt_limit=(0.5, math.inf))
