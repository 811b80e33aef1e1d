"""While the tests run, wrong shapes and wrong types are errors, also in functions that name no shape."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from gatework.files import write_atomically
from gatework.ops import attention


def test_a_wrong_rank_is_found():
    flat = torch.zeros(2, 3, 4)
    with pytest.raises(TypeCheckError, match="batch heads q_length head_dim"):
        attention(flat, flat, flat)


def test_sizes_with_one_name_must_agree():
    q = torch.zeros(2, 1, 3, 4)
    with pytest.raises(TypeCheckError, match="head_dim"):
        attention(q, torch.zeros(2, 1, 3, 5), q)


def test_types_are_checked_where_there_is_no_shape():
    with pytest.raises(BeartypeCallHintViolation, match="path"):
        write_atomically("text", "text")


@pytest.mark.bad_input
def test_the_mark_switches_it_off():
    with pytest.raises(AttributeError):
        write_atomically("text", "text")
