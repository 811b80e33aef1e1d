"""Masks written as text, such as ``SlidingWindow(256, 256) & Causal()``, read without running any of it.

The text is parsed, and only what is listed here is understood: masks of :mod:`gatework.masks` with plain
values, ``&``, ``|``, ``~``, and whole numbers that may be computed from the length ``N``.
"""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from gatework import masks
from gatework.bench.attention.families import documents, grid
from gatework.checks import suggestion
from gatework.masks import Mask

#: Longest text that is read, and largest number that it may come to.
MOST_CHARACTERS = 4000
MOST_NUMBER = 2**40

_COMBINATIONS = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_}
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "documents": documents,
    "grid": grid,
    "sample_document_lengths": masks.sample_document_lengths,
}
#: Masks that take tensors: lists are made into tensors for them.
_OF_TENSORS = {"BlockSparse"}
_RULE = (
    "a mask is written with the masks of gatework.masks, plain values, &, |, ~, and whole numbers computed "
    "from the length N, such as SlidingWindow(N // 16, 0) | PrefixLM(64)"
)


def parse_mask(text: str, length: int) -> Mask:
    """Build the mask that a text describes, for sequences of a length.

    Besides the masks and their named constructors the text may use ``N``, the length; ``documents(N)``,
    document lengths that fill it, or ``sample_document_lengths(N, seed=3)``, others; and ``grid(N)``, the
    sides of the most square grid of so many tokens. ``BlockSparse`` takes lists for tensors.

    Args:
        text: For instance ``"Causal() & SlidingWindow(N // 8, 0)"``.
        length: What ``N`` stands for.

    Raises:
        ValueError: If the text is no such expression, or the mask refuses its arguments.
        TypeError: If the mask refuses the type of an argument.
    """
    value = _Reader(text, length).read()
    if not isinstance(value, Mask):
        raise ValueError(f"mask {text!r} describes {value!r}, which is no mask; {_RULE}")
    return value


@cache
def mask_classes() -> dict[str, type[Mask]]:
    """Return the masks that a text may build, by name."""
    found = {name: getattr(masks, name) for name in masks.__all__}
    return {
        name: value
        for name, value in found.items()
        if inspect.isclass(value) and issubclass(value, Mask) and not inspect.isabstract(value)
    }


class _Reader:
    """Reads one text; every node of its syntax tree that is not listed is an error that quotes it."""

    def __init__(self, text: str, length: int) -> None:
        self._text = text
        self._length = length

    def read(self) -> Any:
        if len(self._text) > MOST_CHARACTERS:
            raise ValueError(f"a mask must be written in at most {MOST_CHARACTERS} characters")
        try:
            tree = ast.parse(self._text.strip(), mode="eval")
            return self._value(tree.body)
        except (SyntaxError, MemoryError, RecursionError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
            raise ValueError(f"mask {self._text!r} cannot be read ({reason}); {_RULE}") from error

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | float() | None as value):
                return value
            case ast.Constant(value=int() as number):
                return self._bounded(number, node)
            case ast.Constant(value=str() as word):
                return word
            case ast.Name(id="N"):
                return self._length
            case ast.List(elts=elements):
                return [self._value(element) for element in elements]
            case ast.Tuple(elts=elements):
                return tuple(self._value(element) for element in elements)
            case ast.UnaryOp(op=ast.Invert() | ast.USub() as sign, operand=operand):
                return self._unary(sign, operand, node)
            case ast.BinOp(left=left, op=sign, right=right):
                return self._binary(self._value(left), sign, self._value(right), node)
            case ast.Call():
                return self._call(node)
        raise self._refused(node)

    def _unary(self, sign: ast.unaryop, operand: ast.expr, node: ast.expr) -> Any:
        value = self._value(operand)
        if isinstance(sign, ast.Invert) and isinstance(value, Mask):
            return ~value
        if isinstance(sign, ast.USub) and isinstance(value, int | float) and not isinstance(value, bool):
            return -value
        raise self._refused(node)

    def _binary(self, left: Any, sign: ast.operator, right: Any, node: ast.expr) -> Any:
        if isinstance(left, Mask) and isinstance(right, Mask) and type(sign) in _COMBINATIONS:
            return _COMBINATIONS[type(sign)](left, right)
        numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in (left, right))
        if numbers and type(sign) in _ARITHMETIC:
            if isinstance(sign, ast.FloorDiv) and right == 0:
                raise ValueError(f"mask {self._text!r} divides by zero at {self._quote(node)}")
            return self._bounded(_ARITHMETIC[type(sign)](left, right), node)
        raise self._refused(node)

    def _call(self, node: ast.Call) -> Any:
        function = self._function(node.func)
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            raise self._refused(node)
        arguments = [self._value(argument) for argument in node.args]
        options = {word.arg: self._value(word.value) for word in node.keywords if word.arg is not None}
        if len(options) != len(node.keywords):
            raise self._refused(node)
        takes_tensors = any(
            isinstance(name, ast.Name) and name.id in _OF_TENSORS for name in ast.walk(node.func)
        )
        try:
            if takes_tensors:
                arguments = [_tensor(value) for value in arguments]
                options = {name: _tensor(value) for name, value in options.items()}
            return function(*arguments, **options)
        except TypeError as error:
            raise TypeError(f"mask {self._quote(node)}: {error}") from error
        except (ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError) as error:
            raise ValueError(f"mask {self._quote(node)}: {error}") from error

    def _function(self, node: ast.expr) -> Callable[..., Any]:
        """What is called: a mask, one of its named constructors, or a function of the length."""
        match node:
            case ast.Name(id=name) if name in _FUNCTIONS:
                return _FUNCTIONS[name]
            case ast.Name(id=name) if name in mask_classes():
                return mask_classes()[name]
            case ast.Name(id=name):
                near = suggestion(name, [*mask_classes(), *_FUNCTIONS])
                raise ValueError(f"{name!r} in mask {self._text!r} is not known{near}; {_RULE}")
            case ast.Attribute(value=ast.Name(id=name), attr=method) if name in mask_classes():
                if method in _constructors(mask_classes()[name]):
                    return getattr(mask_classes()[name], method)  # type: ignore[no-any-return]
        raise self._refused(node)

    def _bounded(self, number: int, node: ast.expr) -> int:
        if abs(number) > MOST_NUMBER:
            raise ValueError(f"{self._quote(node)} in a mask must be at most 2 ** 40")
        return number

    def _quote(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text.strip(), node) or self._text

    def _refused(self, node: ast.expr) -> ValueError:
        return ValueError(f"{self._quote(node)!r} in mask {self._text!r} is not allowed; {_RULE}")


def _tensor(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, list) else value


def _constructors(mask: type[Mask]) -> set[str]:
    """The public class methods and static methods of a mask."""
    members = inspect.getmembers_static(mask)
    return {
        name
        for name, member in members
        if isinstance(member, classmethod | staticmethod) and not name.startswith("_")
    }
