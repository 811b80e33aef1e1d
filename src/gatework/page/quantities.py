"""How pages and tables write numbers: bytes, rates, seconds, counts, and the ticks of a log axis.

Everything people read (report, hover texts, command line) goes through these functions, so that one
quantity never appears in two notations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

NOT_MEASURED = "–"
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")


def format_bytes(value: int | float | None) -> str:
    """Write a number of bytes with a binary unit: ``65536`` is ``64 KiB``."""
    return _scaled(value, 1024.0, _BINARY, separator=" ")


def format_count(value: int | float | None) -> str:
    """Write a count with a decimal suffix: ``1234567`` is ``1.23M``."""
    return _scaled(value, 1000.0, _DECIMAL, separator="")


def format_rate(value: int | float | None, units: str) -> str:
    """Write a throughput in ``units``, a plural: ``12345`` of ``"images"`` is ``12.3k images/s``."""
    return NOT_MEASURED if value is None else f"{format_count(value)} {units}/s"


def format_flops(value: int | float | None) -> str:
    """Write a number of floating-point operations: ``1.5e12`` is ``1.5 TFLOP``."""
    return NOT_MEASURED if value is None else f"{_scaled(value, 1000.0, _DECIMAL, separator=' ')}FLOP"


def format_difference(value: int | float, unit: str = "") -> str:
    """Write a difference of two qualities with its sign: ``0.0123`` is ``+0.012``."""
    number = format_quality(abs(value))
    sign = "" if float(number) == 0 else "+" if value > 0 else "−"
    return f"{sign}{number} {unit}" if unit else f"{sign}{number}"


def format_seconds(value: int | float | None) -> str:
    """Write a duration in the unit a person would use: ``0.012`` is ``12 ms``, ``83`` is ``1 min 23 s``."""
    if value is None:
        return NOT_MEASURED
    if value < 0.9995:
        return f"{_three_digits(value * 1000)} ms"
    if value < 59.95:
        return f"{_three_digits(value)} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_quality(value: int | float | None, unit: str = "") -> str:
    """Write a quality or a loss with three decimals (fewer if it is large), and its unit if it has one."""
    if value is None:
        return NOT_MEASURED
    decimals = 3 if abs(value) < 10 else max(0, 3 - int(math.log10(abs(value))))
    number = f"{value:.{decimals}f}".replace("-", "−")
    return f"{number} {unit}" if unit else number


def format_ratio(value: int | float) -> str:
    """Write how many times one number is another: ``2.345`` is ``2.3×``."""
    return f"{value:.0f}×" if value >= 10 else f"{value:.1f}×" if value >= 1.95 else f"{value:.2f}×"


#: Ways to write a cost, by the names that tasks declare them with, and the base of their ticks on a log axis.
FORMATS: Mapping[str, tuple[Callable[[int | float | None], str], int]] = {
    "bytes": (format_bytes, 2),
    "count": (format_count, 10),
    "flops": (format_flops, 10),
    "seconds": (format_seconds, 10),
}


def listed(texts: Sequence[str]) -> str:
    """Write a list as in a sentence: ``a, b and c``."""
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def capitalised(text: str) -> str:
    """Write a text as at the beginning of a sentence; the rest of it stays as it is."""
    return text[:1].upper() + text[1:]


def _scaled(value: int | float | None, base: float, units: tuple[str, ...], separator: str) -> str:
    if value is None:
        return NOT_MEASURED
    exponent = 0
    # 999.5 and more would be printed as 1000 of the smaller unit
    while abs(value) >= (base if base == 1024 else 999.5) and exponent < len(units) - 1:
        value /= base
        exponent += 1
    return f"{_three_digits(value)}{separator}{units[exponent]}"


def _three_digits(value: int | float) -> str:
    if abs(value) >= 99.95 or value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}".rstrip("0").rstrip(".")


def log_axis(values: Iterable[float], title: str, write: Callable[[float], str], base: int) -> dict[str, Any]:
    """Describe a logarithmic axis to a page's script: its range, as exponents of ten, and its ticks.

    Args:
        values: What the axis must hold; only positive ones count.
        title: Title of the axis.
        write: Writes the label of a tick.
        base: See :func:`log_ticks`.
    """
    positive = [value for value in values if value > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 10.0)
    # At least one doubling, so that noise of a few percent never fills the whole axis.
    pad = max(0.05 * math.log10(high / low), 0.5 * (math.log10(2) - math.log10(high / low)), 0.06)
    low, high = low / 10**pad, high * 10**pad
    ticks = log_ticks(low, high, base)
    return {
        "title": f"{title} (log scale)",
        "range": [math.log10(low), math.log10(high)],
        "ticks": ticks,
        "labels": [write(tick) for tick in ticks],
    }


def log_ticks(low: int | float, high: int | float, base: int, most: int = 5) -> list[float]:
    """Choose up to ``most`` round positions for the ticks of a logarithmic axis.

    Powers of ``base`` (2 for bytes, 10 for rates) if there are three of them, every so many if there are too
    many, and simple multiples of them if there are too few; a range too narrow for these gets equal steps.

    Raises:
        ValueError: If ``low`` is not positive or ``high`` is below it.
    """
    if not 0 < low <= high:
        raise ValueError(f"log_ticks needs 0 < low <= high, got low={low}, high={high}")
    exponents = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    inside: list[float] = []
    for factors in ((1.0,), (1.0, 1.5) if base == 2 else (1.0, 2.0, 5.0)):
        values = [factor * float(base) ** exponent for exponent in exponents for factor in factors]
        inside = [value for value in values if low <= value <= high]
        if len(inside) > most:
            return inside[:: math.ceil(len(inside) / most)]
        if len(inside) >= 3:
            return inside
    even = _even_ticks(low, high, base)
    return even if len(even) > len(inside) else inside


def _even_ticks(low: int | float, high: int | float, base: int) -> list[float]:
    """Equal round steps between ``low`` and ``high``; the only value itself when they are equal."""
    if math.isclose(low, high):
        return [float(low)]
    # Two steps fit between low and high wherever they lie, so that there are at least two ticks.
    largest = (high - low) / 2
    power = float(base) ** math.floor(math.log(largest, base))
    steps = [factor * power for factor in ((0.5, 1) if base == 2 else (0.5, 1, 2, 5))]
    step = max(step for step in steps if step <= largest)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
