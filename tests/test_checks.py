"""The checks of values: one wording, one kind of error for each kind of mistake."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from gatework import checks

NAN, INF = float("nan"), float("inf")

pytestmark = pytest.mark.bad_input


@pytest.mark.parametrize("value", [1, 5, np.int64(3), np.uint8(2)])
def test_integers_are_returned_as_pythons(value):
    found = checks.check_int("size", value, at_least=1, at_most=5)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize(
    "value", [True, np.True_, 2.0, NAN, "3", None, [1], 1j, torch.tensor(1), np.array(1), np.float64(1)]
)
def test_what_is_no_integer_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"^size must be an integer, got "):
        checks.check_int("size", value, at_least=1)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"at_least": 1}, "size must be at least 1, got 0"),
        (7, {"at_most": 6}, "size must be at most 6, got 7"),
        (0, {"at_least": 1, "at_most": 6}, "size must be between 1 and 6, got 0"),
        (np.int64(-1), {"at_least": 0}, "size must be at least 0, got -1"),
    ],
)
def test_integers_out_of_bounds_are_value_errors(value, bounds, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        checks.check_int("size", value, **bounds)


def test_rows_of_integers_name_the_place():
    assert checks.check_ints("sizes", torch.tensor([1, 2])) == (1, 2)
    assert checks.check_ints("sizes", np.array([3])) == (3,)
    with pytest.raises(ValueError, match=r"^sizes\[1\] must be at least 0, got -2$"):
        checks.check_ints("sizes", [1, -2], at_least=0)
    with pytest.raises(TypeError, match=r"^sizes must be integers in one row, got 3$"):
        checks.check_ints("sizes", 3)


def test_one_value_stands_for_all_axes():
    assert checks.check_per_axis("window", 3, 2) == (3, 3)
    assert checks.check_per_axis("window", [3, 4], 2) == (3, 4)
    assert checks.check_flag_per_axis("is_causal", True, 2) == (True, True)
    with pytest.raises(ValueError, match=r"^window must be one number or 2, one for each axis, got \(1,\)$"):
        checks.check_per_axis("window", (1,), 2)
    with pytest.raises(TypeError, match=r"^is_causal\[1\] must be True or False, got 0$"):
        checks.check_flag_per_axis("is_causal", [True, 0], 2)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(1)])
def test_numbers_are_returned_as_pythons(value):
    found = checks.check_number("rate", value, above=0)
    assert found == value
    assert isinstance(found, int | float)


@pytest.mark.parametrize("value", [True, np.False_, "0.5", None, 1j, [0.5], torch.tensor(0.5)])
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"^rate must be a number, got "):
        checks.check_number("rate", value)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"above": 0}, "rate must be positive, got 0"),
        (NAN, {"above": 0}, "rate must be positive, got nan"),
        (1, {"above": 1}, "rate must be above 1, got 1"),
        (-0.5, {"at_least": 0}, "rate must be at least 0, got -0.5"),
        (1.0, {"at_least": 0, "below": 1}, "rate must be at least 0 and below 1, got 1.0"),
        (1.5, {"at_least": 0, "at_most": 1}, "rate must be between 0 and 1, got 1.5"),
        (NAN, {}, "rate must be finite, got nan"),
        (INF, {"above": 0}, "rate must be finite, got inf"),
        (-INF, {}, "rate must be finite, got -inf"),
        (10**400, {}, "rate must be finite, got an integer of 1329 bits"),
        (NAN, {"finite": False}, "rate must be a number, got nan"),
    ],
)
def test_numbers_out_of_bounds_are_value_errors(value, bounds, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        checks.check_number("rate", value, **bounds)


def test_infinity_can_be_allowed():
    assert checks.check_number("limit", INF, at_least=0, finite=False) == INF


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: checks.check_sizes(a=1, b=0), ValueError, "b must be at least 1, got 0"),
        (lambda: checks.check_counts(a=0, b=-1), ValueError, "b must be at least 0, got -1"),
        (lambda: checks.check_positive(a=1, b=0.0), ValueError, r"b must be positive, got 0\.0"),
        (lambda: checks.check_probability("p", 1), ValueError, "p must be at least 0 and below 1, got 1"),
        (lambda: checks.check_flags(a=True, b=1), TypeError, "b must be True or False, got 1"),
        (lambda: checks.check_bool("a", None), TypeError, "a must be True or False, got None"),
        (lambda: checks.check_divides("heads", 3, "dim", 8), ValueError, "heads must divide dim=8, got 3"),
        (lambda: checks.check_divides("heads", 0, "dim", 8), ValueError, "heads must be at least 1, got 0"),
        (lambda: checks.check_seed(2**32), ValueError, r"seed must be below 2\*\*32, got 4294967296"),
        (lambda: checks.check_seed(-1, "data_seed"), ValueError, "data_seed must be at least 0, got -1"),
        (lambda: checks.check_text("name", " "), ValueError, "name must not be empty, got ' '"),
        (lambda: checks.check_text("name", 3), TypeError, "name must be text, got 3"),
        (
            lambda: checks.check_compat("theirs"),
            ValueError,
            "compat must be one of None, official, got 'thei",
        ),
        (
            lambda: checks.check_shape("x", torch.ones(2), (3,), "(length,)"),
            ValueError,
            r"x must have shape \(length,\)=\(3,\), got \(2,\)",
        ),
        (
            lambda: checks.check_dtype("map", torch.ones(2), torch.bool, "boolean"),
            TypeError,
            r"map must be boolean, got torch\.float32",
        ),
    ],
)
def test_every_check_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("value", "choices", "error", "message"),
    [
        ("layer", ("layernorm", "rmsnorm"), ValueError, "got 'layer'; did you mean 'layernorm'[?]$"),
        ("x", ("layernorm", "rmsnorm"), ValueError, "must be one of layernorm, rmsnorm, got 'x'$"),
        (None, ("layernorm", "rmsnorm"), TypeError, "must be one of layernorm, rmsnorm, got None$"),
        (True, (1, 2), TypeError, "must be one of 1, 2, got True$"),
        (["a"], ("a",), TypeError, r"must be one of a, got \['a'\]$"),
    ],
)
def test_choices_name_the_nearest(value, choices, error, message):
    with pytest.raises(error, match=message):
        checks.check_choice("norm", value, choices)
    assert checks.check_choice("norm", choices[0], choices) == choices[0]


def test_unknown_names_are_refused_with_the_nearest():
    checks.check_names("trainer has no option", ["devices"], {"devices", "precision"})
    with pytest.raises(TypeError, match=r"trainer has no option 'device'; did you mean 'devices'[?]"):
        checks.check_names("trainer has no option", ["device"], {"devices", "precision"})


@pytest.mark.compile
def test_checks_leave_nothing_in_a_graph():
    def scaled(x, scale, window):
        checks.check_sizes(window=window)
        checks.check_int("length", x.shape[0], at_least=1)
        checks.check_number("scale", scale, above=0)
        checks.check_choice("padding", "zeros", ("zeros", "mask"))
        return x * scale * window

    compiled = torch.compile(scaled, fullgraph=True, backend="eager", dynamic=True)
    for length in (3, 5):
        assert torch.equal(compiled(torch.ones(length), 2.0, 3), torch.full((length,), 6.0))


def test_the_module_is_light():
    code = "import sys, gatework.checks; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
