import pytest
import torch

from gatework.masks import Causal, Full, Grid, Halo, Neighborhood, Windows, axes
from tests.masks.test_families import exact_classes


def test_one_number_holds_for_every_axis():
    mask = Neighborhood((6, 7), 3, stride=2, is_causal=True)
    assert mask == Neighborhood([6, 7], (3, 3), stride=(2, 2), dilation=1, is_causal=[True, True])
    assert (mask.q_shape, mask.q_size, mask.tile_hint) == ((6, 7), 42, (2, 2))
    assert eval(repr(mask)) == mask
    assert Neighborhood(5, 3).shape == (5,)


def test_windows_are_full_at_the_borders():
    for window in (3, 4):
        assert (Neighborhood((7, 9), window).to_dense(63, 63).sum(1) == window**2).all()


def test_the_whole_axis_is_full_or_causal_attention():
    assert torch.equal(Neighborhood(8, 8).to_dense(8, 8), Full().to_dense(8, 8))
    assert torch.equal(Neighborhood(8, 8, is_causal=True).to_dense(8, 8), Causal().to_dense(8, 8))


def test_a_stride_of_the_window_makes_windows():
    mask = Neighborhood((6, 8), (3, 4), stride=(3, 4))
    assert torch.equal(mask.to_dense(48, 48), Windows((6, 8), (3, 4)).to_dense(48, 48))


def test_no_halo_makes_windows():
    assert torch.equal(Halo((6, 8), (3, 4), 0).to_dense(48, 48), Windows((6, 8), (3, 4)).to_dense(48, 48))


def test_a_shift_splits_the_window_that_wraps_around():
    window = torch.tensor([0, 1, 1, 1, 1, 2, 2, 2])
    assert torch.equal(Windows(8, 4, shift=1).to_dense(8, 8), window[:, None] == window)


def test_strided_queries_are_fewer():
    mask = Halo((8, 8), 4, 1, query_stride=2)
    assert (mask.q_shape, mask.kv_shape, mask.tile_hint) == ((4, 4), (8, 8), (2, 2))
    assert mask.to_dense(16, 64)[0].sum() == 25


def test_grids_spread_over_the_axis():
    assert Grid(6, 2).to_dense(6, 6)[1].nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "mask",
    [
        Neighborhood((9, 20), (3, 4), stride=(1, 3), dilation=(2, 3), is_causal=(False, True)),
        Halo((9, 20), 4, 3, query_stride=2),
        Windows((9, 20), 4, shift=3),
        Grid((9, 20), (3, 5)),
    ],
    ids=lambda mask: type(mask).__name__,
)
def test_windows_of_an_axis_tell_all_of_it(mask, axis):
    windows = mask.axis(axis)
    queries, keys = mask.q_shape[axis], mask.kv_shape[axis]
    place = torch.arange(keys) // windows.dilation
    allowed = (place >= windows.low[:, None]) & (place < windows.high[:, None])
    allowed &= torch.arange(keys) % windows.dilation == windows.q_class[:, None]
    assert torch.equal(allowed.sum(1), windows.high - windows.low)
    strides = (mask.q_shape[1], mask.kv_shape[1]) if axis == 0 else (1, 1)
    # Along the other axis the first coordinate sees itself.
    pairs = mask.pairs(torch.arange(queries) * strides[0], torch.arange(keys) * strides[1])
    assert torch.equal(pairs, allowed)


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("is_causal", [False, True])
def test_long_axes_are_classified_without_a_table(monkeypatch, dilation, is_causal):
    mask = Neighborhood(60, 7, stride=3, dilation=dilation, is_causal=is_causal)
    edges = torch.tensor([0, 1, 2, 5, 14, 15, 30, 44, 45, 46, 60])
    exact = exact_classes(mask.to_dense(60, 60), edges, edges)
    monkeypatch.setattr(axes, "_TABLE", 0)
    assert torch.equal(mask.classify(edges, edges), exact)


def test_windows_that_go_back_keep_their_promises():
    windows = axes.AxisWindows(
        torch.zeros(4).long(), torch.tensor([5, 0, 3, 3]), torch.tensor([7, 2, 3, 9]), 1
    )
    ranges = torch.tensor([[0, 1, 2, 3, 0], [0, 1, 2, 3, 3]])
    keys = torch.tensor([[0, 5, 3, 0], [1, 6, 8, 8]])
    table = axes.axis_classes(windows, 9, ranges, keys)
    axis_table, axes._TABLE = axes._TABLE, 0
    try:
        promised = axes.axis_classes(windows, 9, ranges, keys)
    finally:
        axes._TABLE = axis_table
    assert ((promised == table) | (promised == 1)).all()
    assert table.tolist() == [[0, 2, 1, 1], [2, 0, 0, 1], [0, 0, 0, 0], [0, 2, 2, 1], [1, 1, 1, 1]]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Neighborhood((), 3), ValueError, r"shape must have 1 to 3 axes, got \(\)"),
        (lambda: Neighborhood((4, 4, 4, 4), 3), ValueError, "shape must have 1 to 3 axes"),
        (lambda: Neighborhood((4, 0), 1), ValueError, r"shape\[1\] must be at least 1, got 0"),
        (
            lambda: Neighborhood((4, 5), 5),
            ValueError,
            "window . dilation must fit the axis of 4, got window 5",
        ),
        (lambda: Neighborhood(8, 3, dilation=3), ValueError, "axis of 8, got window 3 . dilation 3"),
        (lambda: Neighborhood(8, 3, stride=4), ValueError, "stride must be at most the window 3, got 4"),
        (lambda: Neighborhood(8, 0), ValueError, "window must be at least 1, got 0"),
        (lambda: Neighborhood(8, 3.0), TypeError, r"window must be an integer.*got 3\.0"),
        (lambda: Neighborhood((8, 8), (3, 3, 3)), ValueError, "window must be one number or 2"),
        (lambda: Neighborhood((8, 8), 3, is_causal=1), TypeError, "is_causal must be True or False"),
        (
            lambda: Neighborhood(8, 3, is_causal=(True, False)),
            ValueError,
            r"is_causal must be one flag or 1, one for each axis, got \(True, False\)",
        ),
        (lambda: Halo(8, 9, 1), ValueError, "block must be at most the axis of 8, got 9"),
        (lambda: Halo(8, 4, -1), ValueError, "halo must be at least 0, got -1"),
        (lambda: Halo(8, 3, 1, query_stride=2), ValueError, "query_stride must divide the block 3, got 2"),
        (lambda: Windows(8, 9), ValueError, "window must be at most the axis of 8, got 9"),
        (lambda: Windows(8, 4, shift=4), ValueError, "shift must be less than the window 4, got 4"),
        (lambda: Grid(8, 3), ValueError, "grid must divide the axis of 8, got 3"),
        (lambda: Neighborhood(8, 3).to_dense(8, 9), ValueError, "kv_length must be 8.*got 9"),
    ],
)
def test_wrong_shapes_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()
