import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from gatework.masks import Neighborhood
from gatework.natten import merge_attentions, na1d, na2d, na3d
from gatework.ops.attention import attention
from gatework.ops.vision.neighborhood import axis_neighbors, neighborhood_reference
from tests.ops.vision.neighborhood_cases import DOUBLE, outputs_and_gradients, tensors, windows

FUNCTIONS = {1: na1d, 2: na2d, 3: na3d}
NAMES = ("kernel_size", "stride", "dilation", "is_causal")


def close(ours, wanted, atol=1e-11):  # float64, sums in another order
    torch.testing.assert_close(ours, wanted, rtol=0, atol=atol)


@settings(max_examples=60, deadline=None)
@given(
    case=windows(),
    batch=st.integers(0, 2),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    dim=st.integers(1, 5),
    value_dim=st.integers(1, 5),
    extra=st.sampled_from([None, 0, 1, 3]),
    scale=st.sampled_from([None, 0.7, 0.0, -1.3]),
    seed=st.integers(0, 99),
)
def test_equals_the_definition(case, batch, kv_heads, groups, dim, value_dim, extra, scale, seed):
    inputs = tensors(case.grid, batch, kv_heads, groups, dim, value_dim, extra, seed)
    options = {**dict(zip(NAMES, case[1:], strict=True)), "scale": scale}
    ours = outputs_and_gradients(FUNCTIONS[len(case.grid)], inputs, **options, return_lse=True)
    for one, other in zip(
        ours, outputs_and_gradients(neighborhood_reference, inputs, **options), strict=True
    ):
        close(one, other)
    plain = outputs_and_gradients(FUNCTIONS[len(case.grid)], inputs, **options)
    close(plain[0], ours[0])


@settings(max_examples=150, deadline=None)
@given(case=windows())
def test_the_mask_is_the_definition_by_loops(case):
    wanted = torch.ones(1, 1, dtype=torch.bool)
    for axis in zip(*case, strict=True):
        wanted = torch.kron(wanted, axis_neighbors(*axis))
    mask = Neighborhood(
        case.grid, case.kernel_size, stride=case.stride, dilation=case.dilation, is_causal=case.is_causal
    )
    assert torch.equal(mask.to_dense(*wanted.shape), wanted)
    assert wanted.diagonal().all()
    if not any(case.is_causal):
        assert (wanted.sum(1) == math.prod(case.kernel_size)).all()


@settings(max_examples=25, deadline=None)
@given(case=windows())
def test_every_window_has_as_many_keys(case):
    inputs = tensors(case.grid, batch=1)
    inputs["query"].zero_()  # all scores are zero: the log-sum-exp counts the keys
    options = dict(zip(NAMES, case[1:-1], strict=False))
    _, lse = FUNCTIONS[len(case.grid)](**inputs, **options, return_lse=True)
    close(lse, torch.full_like(lse, math.log(math.prod(case.kernel_size))))


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((1500,), {"kernel_size": 33, "dilation": 3, "is_causal": True}),
        ((37, 40), {"kernel_size": 7}),
        ((32, 44), {"kernel_size": (8, 6), "stride": (8, 3), "dilation": (1, 2)}),
        ((10, 11, 13), {"kernel_size": (3, -1, 5), "is_causal": (True, False, False)}),
    ],
)
def test_grids_of_a_usual_size(grid, options):
    # Large enough for the engine that computes only the tiles it needs.
    inputs = tensors(grid, batch=1, kv_heads=1, groups=2, dim=16, value_dim=16, extra=3, dtype=torch.float32)
    ours = outputs_and_gradients(FUNCTIONS[len(grid)], inputs, **options, return_lse=True)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    wanted = outputs_and_gradients(neighborhood_reference, exact, **options)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(7,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("extra", [None, 2])
@pytest.mark.parametrize("whole", [True, False])
def test_windows_of_whole_axes_are_dense_attention(grid, extra, whole):
    inputs = tensors(grid, extra=extra, groups=2)
    y, lse = FUNCTIONS[len(grid)](**inputs, kernel_size=-1 if whole else grid, stride=2, return_lse=True)
    q, k, v, *more = (tensor.flatten(1, -3).transpose(1, 2) for tensor in inputs.values())
    if more:
        k, v = torch.cat([k, more[0]], 2), torch.cat([v, more[1]], 2)
    wanted = scaled_dot_product_attention(q, k, v, enable_gqa=True)
    close(y.flatten(1, -3).transpose(1, 2), wanted)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    close(lse.flatten(1, -2).transpose(1, 2), scores.logsumexp(-1))


@pytest.mark.parametrize("stride", [1, 2, 7])
@pytest.mark.parametrize("extra", [None, 2])
def test_a_causal_window_of_the_whole_sequence_is_causal_attention(stride, extra):
    inputs = tensors((7,), extra=extra)
    y = na1d(**inputs, kernel_size=7, stride=stride, is_causal=True)
    close(y, neighborhood_reference(**inputs, kernel_size=7, stride=stride, is_causal=True)[0])
    if extra is None:
        q, k, v = (tensor.transpose(1, 2) for tensor in inputs.values())
        wanted = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        close(y.transpose(1, 2), wanted)


def test_stride_equal_to_the_window_is_independent_blocks():
    inputs = tensors((6, 8))
    y = na2d(**inputs, kernel_size=(3, 4), stride=(3, 4))
    for row in range(0, 6, 3):
        for column in range(0, 8, 4):
            block = {
                name: tensor[:, row : row + 3, column : column + 4].clone() for name, tensor in inputs.items()
            }
            close(y[:, row : row + 3, column : column + 4], na2d(**block, kernel_size=-1))


def test_one_axis_of_a_plane_may_be_whole_or_a_single_token():
    inputs = tensors((1, 9))
    y = na2d(**inputs, kernel_size=(-1, 3))
    wanted = na1d(*(tensor.squeeze(1) for tensor in inputs.values()), 3)
    close(y.squeeze(1), wanted)


def test_gradcheck():
    inputs = tensors((4, 5), batch=1, dim=2, value_dim=1, extra=2)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]

    def call(q, k, v, more_k, more_v):
        return na2d(q, k, v, (2, 3), (1, 2), (2, 1), (False, True), None, more_k, more_v, return_lse=True)

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2), (torch.float32, 2e-6)]
)
@pytest.mark.parametrize("extra", [None, 3])
def test_lower_precisions(dtype, tolerance, extra):
    inputs = tensors((9, 8), extra=extra, dim=8, value_dim=4, dtype=dtype)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    y, lse = na2d(**leaves, kernel_size=3, dilation=2, return_lse=True)
    wanted, wanted_lse = neighborhood_reference(
        **{name: tensor.double() for name, tensor in inputs.items()}, kernel_size=3, dilation=2
    )
    assert y.dtype == dtype
    assert lse.dtype == torch.float32
    close(y.double(), wanted, tolerance)
    close(lse.double(), wanted_lse, tolerance)
    y.sum().backward()
    assert all(leaf.grad.dtype == dtype and leaf.grad.isfinite().all() for leaf in leaves.values())


def test_memory_layout_does_not_matter():
    inputs = tensors((6, 7), dim=8)
    strided = {
        name: torch.stack([tensor, tensor], -1).transpose(1, 2).contiguous().transpose(1, 2)[..., 0]
        for name, tensor in inputs.items()
    }
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    y = na2d(**strided, kernel_size=3)
    close(y, na2d(**inputs, kernel_size=3))
    assert y.is_contiguous()


def test_autocast():
    inputs = tensors((6, 6), dim=4, extra=2, dtype=torch.float32)
    inputs["value"] = inputs["value"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = na2d(**inputs, kernel_size=3)
    wanted, _ = neighborhood_reference(
        **{name: tensor.double() for name, tensor in inputs.items()}, kernel_size=3
    )
    close(y.double(), wanted, 3e-2)


#: The names and defaults of NATTEN 0.21 after query, key and value.
SIGNATURE = [
    ("kernel_size", inspect.Parameter.empty),
    ("stride", 1),
    ("dilation", 1),
    ("is_causal", False),
    ("scale", None),
    ("additional_keys", None),
    ("additional_values", None),
    ("attention_kwargs", None),
    ("backend", None),
    ("q_tile_shape", None),
    ("kv_tile_shape", None),
    ("backward_q_tile_shape", None),
    ("backward_kv_tile_shape", None),
    ("backward_kv_splits", None),
    ("backward_use_pt_reduction", False),
    ("run_persistent_kernel", True),
    ("kernel_schedule", None),
    ("torch_compile", False),
    ("return_lse", False),
]


@pytest.mark.parametrize("num_axes", FUNCTIONS)
def test_arguments_are_those_of_natten_and_may_be_given_by_position(num_axes):
    function = FUNCTIONS[num_axes]
    parameters = list(inspect.signature(function).parameters.values())
    assert [parameter.name for parameter in parameters[:3]] == ["query", "key", "value"]
    assert [(parameter.name, parameter.default) for parameter in parameters[3:]] == SIGNATURE
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    q, k, v, more_k, more_v = tensors((4,) * num_axes, extra=2).values()
    tile = (2,) * num_axes
    tuning = ({"backend": "cutlass-fmha"}, None, tile, tile, tile, tile, tile, True, False, "coop", True)
    windows = ([3] * num_axes, [2] * num_axes, None, [True] * num_axes)
    y, lse = function(q, k, v, *windows, 0.3, more_k, more_v, *tuning, True)
    options = {"kernel_size": 3, "stride": 2, "is_causal": True, "scale": 0.3}
    wanted = neighborhood_reference(q, k, v, **options, additional_keys=more_k, additional_values=more_v)
    close(y, wanted[0])
    close(lse, wanted[1])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    grid=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_merged_attentions_are_the_attention_over_all_keys(sizes, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = math.prod(grid)
    q = torch.randn(2, 3, tokens, 4, generator=generator, dtype=DOUBLE)
    kv = torch.randn(2, 2, 3, sum(sizes), 4, generator=generator, dtype=DOUBLE)

    def split(q, kv):
        parts = [attention(q, k, v, return_lse=True) for k, v in kv.split(sizes, 3)]
        outputs = [output.transpose(1, 2).unflatten(1, grid) for output, _ in parts]
        return merge_attentions(outputs, [lse.transpose(1, 2).unflatten(1, grid) for _, lse in parts])

    def joined(q, kv):
        output, lse = attention(q, *kv, return_lse=True)
        return output.transpose(1, 2).unflatten(1, grid), lse.transpose(1, 2).unflatten(1, grid)

    if sum(sizes) == 0:
        output, lse = split(q, kv)
        assert (output == 0).all()
        assert lse.isneginf().all()
        return
    ours, wanted = (outputs_and_gradients(function, {"q": q, "kv": kv}) for function in (split, joined))
    for one, other in zip(ours, wanted, strict=True):
        close(one, other)


def test_merging_keeps_dtype_and_precision():
    outputs = [torch.full((1, 2, 1, 1), value, dtype=torch.bfloat16) for value in (1.0, 3.0)]
    lses = [torch.full((1, 2, 1), value) for value in (300.0, 300.0)]
    merged, lse = merge_attentions(outputs, lses, False, False)
    assert merged.dtype == torch.bfloat16
    close(merged.float(), torch.full((1, 2, 1, 1), 2.0))
    close(lse, torch.full((1, 2, 1), 300 + math.log(2)), 1e-4)


Q = torch.zeros(2, 6, 7, 4, 8)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": Q[0]}, r"query must have shape \(batch, 2 axes of tokens, heads, head_dim\), got \(6, 7"),
        ({"query": Q.long()}, r"query must be floating point, got torch\.int64"),
        ({"key": Q.double()}, r"key must have the dtype of query, torch\.float32, got torch\.float64"),
        ({"key": Q[:, :5]}, r"key must have shape \(2, 6, 7, 4, 8\) to match query and key, got \(2, 5"),
        ({"key": Q[:, :, :, :3]}, r"kv_heads that divide the 4 heads of query, got \(2, 6, 7, 3, 8\)"),
        ({"key": Q[0]}, r"key must have shape \(2, 6, 7, 'kv_heads', 8\).*got \(6, 7, 4, 8\)"),
        ({"value": Q[:1]}, r"value must have shape \(2, 6, 7, 4, 8\) to match query and key, got \(1"),
        ({"value": Q[..., 0]}, r"value must have shape \(2, 6, 7, 4, 'value_dim'\)"),
        ({"kernel_size": 1}, "kernel_size must be at least 2, or -1 for a whole axis, got 1"),
        ({"kernel_size": (3, 0)}, r"kernel_size must be at least 2, or -1 for a whole axis, got \(3, 0\)"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be one number or 2, .*got \(3, 3, 3\)"),
        ({"kernel_size": 3.0}, r"kernel_size must be an integer, got 3\.0"),
        ({"kernel_size": "3"}, "kernel_size must be an integer, got '3'"),
        ({"kernel_size": None}, "kernel_size must be an integer, got None"),
        ({"kernel_size": True}, "kernel_size must be an integer, got True"),
        ({"kernel_size": 7}, r"at most the input's 6 tokens along axis 0, got 7 \* 1"),
        (
            {"kernel_size": (6, 4), "dilation": (1, 2)},
            r"at most the input's 7 tokens along axis 1, got 4 \* 2",
        ),
        ({"kernel_size": -1, "dilation": 2}, r"at most the input's 6 tokens along axis 0, got 6 \* 2"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"stride": (1, 4)}, r"stride must be at most kernel_size along every axis, got stride=\(1, 4\)"),
        ({"dilation": (1, -1)}, r"dilation\[1\] must be at least 1, got -1"),
        ({"is_causal": 1}, "is_causal must be True or False, got 1"),
        ({"is_causal": (True,)}, r"is_causal must be one flag or 2, one for each axis, got \(True,\)"),
        ({"scale": math.nan}, "scale must be finite, got nan"),
        ({"additional_keys": Q[:, 0]}, "go together, got additional_values=None"),
        ({"additional_values": Q[:, 0]}, "go together, got additional_keys=None"),
        (
            {"additional_keys": Q[:1, 0], "additional_values": Q[:, 0]},
            r"additional_keys must have shape \(2, 7, 4, 8\) to match query and key, got \(1, 7, 4, 8\)",
        ),
        (
            {"additional_keys": Q[:, 0], "additional_values": Q[:, 0, :3]},
            r"additional_values must have shape \(2, 7, 4, 8\) to match query and key, got \(2, 3, 4, 8\)",
        ),
        ({"backend": "cuda"}, "backend must be one of None, g.*fna, flex-fna, reference, got 'cuda'"),
        ({"kernel_schedule": "fast"}, "kernel_schedule must be None or one of non, coop, pp, got 'fast'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        na2d(**{"query": Q, "key": Q, "value": Q, "kernel_size": 3, **options})


@pytest.mark.bad_input
def test_wrong_attention_kwargs_are_named():
    with pytest.raises(TypeError, match=r"attention_kwargs must be a dict or None, got \[1\]"):
        na2d(Q, Q, Q, 3, attention_kwargs=[1])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("outputs", "lses", "message"),
    [
        ([], [], "one at least, got 0 outputs and 0 lse_tensors"),
        ([Q], [], "as many, one at least, got 1 outputs and 0 lse_tensors"),
        ([Q, Q[:1]], [Q[..., 0]] * 2, r"one shape, got \(2, 6, 7, 4, 8\) and outputs\[1\] \(1, 6, 7, 4, 8\)"),
        ([Q, Q], [Q[..., 0], Q], r"\(2, 6, 7, 4\), got lse_tensors\[1\] \(2, 6, 7, 4, 8\)"),
    ],
)
def test_wrong_parts_are_named(outputs, lses, message):
    with pytest.raises(ValueError, match=message):
        merge_attentions(outputs, lses)
