import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.natten import rescale_windows
from gatework.ops.vision.neighborhood_windows import WindowSpec, window_spec
from tests.ops.vision.neighborhood_cases import windows

lengths = st.integers(1, 12)


@settings(max_examples=200, deadline=None)
@given(case=windows(), data=st.data())
def test_clamped_windows_fit_any_grid_and_change_only_where_they_must(case, data):
    spec = window_spec(len(case.grid), *case[1:])
    assert spec.clamped(case.grid).on(case.grid) == spec.on(case.grid)
    grid = data.draw(st.tuples(*[lengths] * len(case.grid)))
    fitted = spec.clamped(grid).on(grid)
    for length, size, gap, new_size, new_gap in zip(
        grid, spec.kernel_size, spec.dilation, fitted.kernel_size, fitted.dilation, strict=True
    ):
        assert new_size == min(size, length)
        assert new_gap == (1 if size >= length else min(gap, length // size))


def test_clamping_by_hand():
    spec = window_spec(3, (7, 7, 7), stride=(5, 1, 7), dilation=(2, 3, 4))
    wanted = WindowSpec((7, 7, -1), (5, 1, 4), (2, 2, 1), (False,) * 3)
    assert spec.clamped((14, 15, 4)) == wanted


@settings(max_examples=200, deadline=None)
@given(case=windows(), data=st.data())
def test_rescaled_windows_fit_and_keep_their_share(case, data):
    given_windows = case[1:4]
    same = rescale_windows(case.grid, case.grid, *given_windows).on(case.grid)
    assert same == window_spec(len(case.grid), *given_windows).on(case.grid)
    factor = data.draw(st.integers(1, 5))
    larger = tuple(factor * length for length in case.grid)
    spec = rescale_windows(case.grid, larger, *given_windows).on(larger)
    for size, new, length, longer in zip(case.kernel_size, spec.kernel_size, case.grid, larger, strict=True):
        assert new / longer == size / length
    any_grid = data.draw(st.tuples(*[lengths] * len(case.grid)))
    rescale_windows(case.grid, any_grid, *given_windows).on(any_grid)  # raises where it does not fit


def test_rescaling_by_hand():
    # A video model's windows: the whole of the frames, a quarter of the rows, 30 % of the columns.
    spec = rescale_windows((16, 44, 80), (16, 30, 52), (-1, 12, 24), stride=(1, 4, 8))
    assert spec == WindowSpec((-1, 8, 16), (1, 4, 8), (1, 1, 1), (False,) * 3)
    # 2 windows of 2, but the dilation no longer fits.
    assert rescale_windows((44,), (9,), 4, 4, 11) == WindowSpec((2,), (2,), (4,), (False,))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 4), (4,), 3), r"as many axes, of at least one token, got base=\(4, 4\), grid=\(4,\)"),
        (((4,), (0,), 3), r"got base=\(4,\), grid=\(0,\)"),
        (((4,), (8,), 5), r"kernel_size \* dilation must be at most the input's 4 tokens along axis 0"),
        (((4,), (8,), 3, 4), r"stride must be at most kernel_size along every axis, got stride=\(4,\)"),
    ],
)
def test_wrong_grids_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rescale_windows(*arguments)
