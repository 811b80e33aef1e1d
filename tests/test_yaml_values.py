"""One rule for values: what a text means, what it may not hold, and that what is written reads back equal."""

from __future__ import annotations

import math
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.files import FileError
from gatework.yaml_values import MAX_DEPTH, YamlError, read_yaml, read_yaml_file, write_yaml

#: What is written, and what it is. YAML 1.1 says otherwise in most of the cases.
MEANS = {
    "1e-6": 1e-6,
    "1e6": 1e6,
    ".5": 0.5,
    "-1E3": -1000.0,
    "1.": 1.0,
    "+5": 5,
    "010": 10,
    "0o17": 15,
    "0x1F": 31,
    ".inf": math.inf,
    "-.INF": -math.inf,
    "true": True,
    "True": True,
    "FALSE": False,
    **dict.fromkeys(("", "~", "null", "Null", "NULL", "# nothing")),
    **{
        text: text
        for text in (
            *("yes", "no", "on", "off", "y", "n", "Yes", "tRue"),
            *("1_000", "2024-01-01", "12:30:00", "1:30", "-0x1F", "0b11", "e5", "1e", ".", "=", "nan"),
        )
    },
    "'1e-6'": "1e-6",
    '"yes"': "yes",
    "!!str 1": "1",
    "!!float 1": 1.0,
    "{a: [1, yes, null], 'b': {}}": {"a": [1, "yes", None], "b": {}},
    "x: &a [1]\ny: *a": {"x": [1], "y": [1]},
    "{'<<': 1}": {"<<": 1},
}


def same(one, other):
    """Whether two values are equal, and of equal types all the way down."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("text", MEANS)
def test_a_text_means_what_it_says(text):
    assert same(read_yaml(text), MEANS[text])


def test_what_is_not_a_number_is_a_float():
    assert math.isnan(read_yaml(".nan"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' is there twice"),
        ("{x: {a: 1, a: 2}}", "line 1: key 'a' is there twice"),
        ("- {a: 1,\n   a: 2}", "line 2: key 'a' is there twice"),
        ("a: 1\n<<: {b: 2}", "line 2: '<<' merges nothing"),
        ("{[1]: 2}", "line 1: a key must be one word"),
        ("!!python/object/apply:os.system [ls]", "is not allowed"),
        ("!!set {a}", "is not allowed"),
        ("!!timestamp 2024-01-01", "is not allowed"),
        ("!own 1", "'!own' is not allowed"),
        ("!!int 1e3", "'1e3' is not of type int"),
        ("!!bool yes", "'yes' is not of type bool"),
        ("1e400", "beyond what a float can hold"),
        ("9" * 5000, "too many digits"),
        ("&a [*a]", "stands for what it is a part of"),
        ("[" * 100_000, f"deeper than {MAX_DEPTH} levels"),
        ("- " * 100_000, f"deeper than {MAX_DEPTH} levels"),
        ("[1, 2", "line 2, column 1"),
        ("*.txt", "line 1, column 2"),
        ("--- 1\n--- 2", "second document"),
        ("\0", "not allowed"),
        ("\ud800", "no valid Unicode"),
        ("x" * 2**20 + "x", "larger than 1 MiB"),
    ],
)
def test_what_no_option_can_be_is_refused_in_one_line(text, message):
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.bad_input
def test_repetition_does_not_blow_up():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    begun = time.monotonic()
    with pytest.raises(YamlError, match="more than 100,000 values"):
        read_yaml("\n".join(levels))
    assert time.monotonic() - begun < 10


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from([*MEANS])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(values)
def test_what_is_written_reads_back_equal(value):
    assert same(read_yaml(write_yaml(value)), value)


@pytest.mark.parametrize("value", [*MEANS, 1e-6, 1e22, 10, None, True, math.inf])
def test_readers_of_other_versions_read_the_same(value):
    assert same(yaml.safe_load(write_yaml([value])), [value])


def test_tuples_are_lists_and_nothing_else_is_written():
    assert read_yaml(write_yaml({"a": (1, 2)})) == {"a": [1, 2]}
    shared = [1]
    assert "&" not in write_yaml([shared, shared])
    with pytest.raises(TypeError, match="no YAML option"):
        write_yaml({"a": object()})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("data", "message"), [(b"a: 1\na: 2", "line 2"), (b"\xff\xfe\x00", "UTF-8"), (None, "No such file")]
)
def test_an_error_in_a_file_names_it(tmp_path, data, message):
    path = tmp_path / "recipe.yaml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FileError, match=message) as caught:
        read_yaml_file(path)
    assert str(path) in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1e-6")
    assert read_yaml_file(path) == {"a": 1e-6}
