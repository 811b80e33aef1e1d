from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.page.quantities import (
    FORMATS,
    NOT_MEASURED,
    capitalised,
    format_bytes,
    format_count,
    format_difference,
    format_flops,
    format_quality,
    format_rate,
    format_ratio,
    format_seconds,
    listed,
    log_ticks,
)
from gatework.tasks.declaration import Format

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SUFFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
FLOPS = {f"{suffix}FLOP": value for suffix, value in SUFFIXES.items()}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format_bytes(0), "0 B"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(65536), "64 KiB"),
        (format_bytes(1.5 * 2**20), "1.5 MiB"),
        (format_count(999.4), "999"),
        (format_count(999.6), "1k"),
        (format_count(1_234_567), "1.23M"),
        (format_rate(12_345, "tokens"), "12.3k tokens/s"),
        (format_rate(0.5, "images"), "0.5 images/s"),
        (format_flops(1.5e12), "1.5 TFLOP"),
        (format_flops(2.34e15), "2.34 PFLOP"),
        (format_flops(7), "7 FLOP"),
        (format_flops(None), NOT_MEASURED),
        (format_difference(0.0123), "+0.012"),
        (format_difference(-0.0123, "bits"), "−0.012 bits"),
        (format_difference(-0.0001), "0.000"),
        (format_difference(1234.5), "+1234"),
        (format_seconds(0.012), "12 ms"),
        (format_seconds(0.9996), "1 s"),
        (format_seconds(59.96), "1 min 00 s"),
        (format_seconds(83), "1 min 23 s"),
        (format_seconds(3599.7), "1 h 00 min"),
        (format_quality(0.99849), "0.998"),
        (format_quality(2.3, "bits per byte"), "2.300 bits per byte"),
        (format_quality(-0.5), "−0.500"),
        (format_quality(12_345.6), "12346"),
        (format_ratio(1.034), "1.03×"),
        (format_ratio(2.345), "2.3×"),
        (format_ratio(41.2), "41×"),
    ],
)
def test_people_read(written, expected):
    assert written == expected


@pytest.mark.parametrize("write", [format_bytes, format_count, format_seconds, format_quality])
def test_what_was_not_measured_is_no_number(write):
    assert write(None) == NOT_MEASURED
    assert format_rate(None, "images") == NOT_MEASURED


def test_every_format_that_a_task_can_declare_is_written():
    assert set(FORMATS) == set(get_args(Format))
    for write, base in FORMATS.values():
        assert write(None) == NOT_MEASURED
        assert base in (2, 10)


def test_sentences_list_and_begin():
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert capitalised("bits per Byte") == "Bits per Byte"
    assert capitalised("") == ""


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**15))
def test_writing_keeps_the_value(value):
    written = ((format_bytes(value), UNITS), (format_count(value), SUFFIXES), (format_flops(value), FLOPS))
    for text, units in written:
        number, unit = re.fullmatch(r"([\d.]+) ?(\w*)", text).groups()
        assert float(number) * units[unit] == pytest.approx(value, rel=0.006)
        assert len(number.replace(".", "")) <= 4


@settings(max_examples=300, deadline=None)
@given(
    low=st.floats(1e-3, 1e12),
    factor=st.floats(1.0, 1e9),
    base=st.sampled_from([2, 10]),
    most=st.integers(3, 7),
)
def test_ticks_lie_on_the_axis(low, factor, base, most):
    high = low * factor
    ticks = log_ticks(low, high, base, most)
    assert ticks == sorted(set(ticks))
    assert all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert len(ticks) <= max(most, 7)
    if factor >= 2:
        assert len(ticks) >= 2


def test_ticks_are_round():
    assert log_ticks(1000, 1e6, 2) == [2**10, 2**12, 2**14, 2**16, 2**18]
    assert log_ticks(1.2e4, 2e5, 10) == [2e4, 5e4, 1e5, 2e5]
    assert log_ticks(1.2e4, 8e4, 10) == [2e4, 4e4, 6e4, 8e4]
    assert log_ticks(2e4, 3e4, 2) == [20480, 24576, 28672]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 1), (-1, 1)])
def test_a_log_axis_is_positive(low, high):
    with pytest.raises(ValueError, match=f"low={low}, high={high}"):
        log_ticks(low, high, 2)
