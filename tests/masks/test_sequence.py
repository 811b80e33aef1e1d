import pytest
import torch

from gatework.masks import Causal, Full, SlidingWindow


def test_full_allows_everything():
    assert Full().to_dense(3, 5).all()


def test_causal_is_lower_triangular():
    assert torch.equal(Causal().to_dense(4, 6), torch.ones(4, 6, dtype=torch.bool).tril())


def test_both_ends_of_the_window_are_included():
    rows = SlidingWindow(2, 1).to_dense(6, 6).int().tolist()
    assert rows == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
    ]


def test_a_window_of_nothing_is_the_token_itself():
    assert torch.equal(SlidingWindow(0, 0).to_dense(4, 4), torch.eye(4, dtype=torch.bool))


def test_a_window_to_the_left_has_one_key_more_than_its_size():
    assert SlidingWindow(4, 0).to_dense(20, 20).sum(1).tolist() == [1, 2, 3, 4] + [5] * 16


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("left", "right", "error", "message"),
    [
        (-1, 0, ValueError, "left must be at least 0, got -1"),
        (3, -2, ValueError, "right must be at least 0, got -2"),
        (1.5, 0, TypeError, r"left must be an integer, got 1\.5"),
        (1, None, TypeError, "right must be an integer, got None"),
        (True, 0, TypeError, "left must be an integer, got True"),
    ],
)
def test_wrong_windows_are_named(left, right, error, message):
    with pytest.raises(error, match=message):
        SlidingWindow(left, right)
