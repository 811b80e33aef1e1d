"""Fields of a dataclass become options of a command: names, types, defaults and what the docstring says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from jsonargparse import ArgumentParser

from gatework.cli.dataclass_options import add_dataclass_options


@dataclass(frozen=True)
class Oven:
    """How a cake is baked.

    The number of minutes: 30 as a rule.

    Attributes:
        heat: Degrees, of which 80 % are
            enough for biscuits.
        shelf_name: Where it stands.
        fan: Blow at 100 %.
        trays: Sizes of the trays.
        minutes: How long.

    Raises:
        ValueError: If it burns.
    """

    heat: int
    shelf_name: Literal["low", "high"] = "low"
    fan: bool = False
    trays: list[int] = field(default_factory=lambda: [20, 30])
    minutes: float | None = None
    cake: str = field(init=False, default="carrot")


def parsed(*arguments, **options):
    parser = ArgumentParser(exit_on_error=False)
    add_dataclass_options(parser, Oven, **options)
    return parser.parse_args([*arguments]).as_dict()


def test_names_types_and_defaults_are_those_of_the_fields():
    expected = {"heat": 200, "shelf_name": "low", "fan": False, "trays": [20, 30], "minutes": None}
    assert parsed("--heat", "200") == expected
    changed = parsed("--heat=1", "--shelf_name=high", "--fan=true", "--trays=[7]", "--minutes=2")
    assert changed == {"heat": 1, "shelf_name": "high", "fan": True, "trays": [7], "minutes": 2.0}


def test_options_of_a_section_are_named_after_it():
    arguments = ["--oven.heat", "200", "--oven.shelf_name", "high"]
    assert parsed(*arguments, prefix="oven", skip=("trays", "minutes"))["oven"] == {
        "heat": 200,
        "shelf_name": "high",
        "fan": False,
    }


def test_switches_take_no_value():
    assert not parsed("--heat=1", switches=("fan",))["fan"]
    assert parsed("--fan", "--heat=1", switches=("fan",))["fan"]
    with pytest.raises(AssertionError, match=r"Oven\.minutes is not False by default"):
        parsed(switches=("minutes",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "heat"),
        (["--heat=warm"], "heat"),
        (["--heat=1", "--shelf_name=middle"], "shelf_name"),
        (["--heat=1", "--cake=apple"], "cake"),
    ],
)
def test_mistakes_are_refused(arguments, message):
    with pytest.raises(Exception, match=message):
        parsed(*arguments)


def test_help_is_the_docstring(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    parser = ArgumentParser(exit_on_error=False)
    add_dataclass_options(parser, Oven, prefix="oven", switches=("fan",))
    text = " ".join(parser.format_help().split())
    assert "oven: How a cake is baked:" in text
    assert "Degrees, of which 80 % are enough for biscuits. (required, type: int)" in text
    assert "Where it stands. (type: Literal['low', 'high'], default: low)" in text
    assert "Blow at 100 %." in text
    assert "burns" not in text


def test_a_field_without_a_line_is_our_mistake():
    @dataclass
    class Pan:
        """What it is fried in.

        size: Not here.

        Attributes:
            lid: What covers it.
        """

        lid: str = "glass"
        size: int = 1

    parser = ArgumentParser(exit_on_error=False)
    with pytest.raises(AssertionError, match=r"Pan has no line for \['size'\] under Attributes"):
        add_dataclass_options(parser, Pan)
    add_dataclass_options(parser, Pan, skip=("size",))
    assert parser.parse_args([]).as_dict() == {"lid": "glass"}


def test_lines_are_read_under_args_too():
    @dataclass
    class Pan:
        """What it is fried in.

        Args:
            size: How large.
        """

        size: int = 1

    parser = ArgumentParser(exit_on_error=False)
    add_dataclass_options(parser, Pan)
    assert "How large." in parser.format_help()
