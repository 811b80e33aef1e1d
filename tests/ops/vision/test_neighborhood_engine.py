"""NATTEN is not installed where these tests run: a stand-in notes what it is told."""

import types

import pytest
import torch
from torch._subclasses import FakeTensorMode

from gatework.natten import na1d, na2d, na3d
from gatework.ops import engines
from gatework.ops.vision import neighborhood_engine
from gatework.ops.vision.neighborhood import neighborhood_reference
from gatework.ops.vision.neighborhood_engine import NATTEN_BACKENDS, NattenOptions, uses_natten
from tests.ops.vision.neighborhood_cases import tensors

FUNCTIONS = {1: na1d, 2: na2d, 3: na3d}


@pytest.fixture
def calls(monkeypatch):
    """Stand in for the module natten; return the arguments of every call of it."""
    seen = []

    def call(query, key, value, **options):
        seen.append({"query": query, **options})
        if options["kernel_size"] == (2, 2):
            raise NotImplementedError("no suitable backend")
        if options["attention_kwargs"] is not None:
            options["attention_kwargs"]["torch_compile"] = False  # as NATTEN does
        windows = {
            name: options[name] for name in ("kernel_size", "stride", "dilation", "is_causal", "scale")
        }
        extra = {name: options[name] for name in ("additional_keys", "additional_values")}
        return neighborhood_reference(query, key, value, **windows, **extra)

    module = types.SimpleNamespace(na1d=call, na2d=call, na3d=call)
    monkeypatch.setattr(neighborhood_engine, "natten_module", lambda: module)
    return seen


@pytest.mark.parametrize("num_axes", FUNCTIONS)
@pytest.mark.parametrize("backend", ["natten", *NATTEN_BACKENDS])
def test_a_named_backend_gets_every_argument(calls, num_axes, backend):
    inputs = tensors((5,) * num_axes, extra=2)
    tile = (4,) * num_axes
    kwargs = {"backend": "flex-fmha"}
    told = {
        "attention_kwargs": kwargs,
        "q_tile_shape": tile,
        "kv_tile_shape": tile,
        "backward_q_tile_shape": tile,
        "backward_kv_tile_shape": tile,
        "backward_kv_splits": tile,
        "backward_use_pt_reduction": True,
        "run_persistent_kernel": False,
        "kernel_schedule": "pp",
        "torch_compile": True,
    }
    options = {"kernel_size": -1, "stride": 2, "is_causal": True, "scale": 0.3}
    y, lse = FUNCTIONS[num_axes](**inputs, **options, **told, backend=backend, return_lse=True)
    wanted = neighborhood_reference(**inputs, **options)
    assert torch.equal(y, wanted[0])
    assert torch.equal(lse, wanted[1])
    (call,) = calls
    assert call["kernel_size"] == (5,) * num_axes
    assert call["stride"] == (2,) * num_axes
    assert call["is_causal"] == (True,) * num_axes
    assert call["scale"] == 0.3
    assert call["return_lse"] is True
    assert call["backend"] == (None if backend == "natten" else backend)
    assert {name: call[name] for name in told if name != "attention_kwargs"} == {
        name: value for name, value in told.items() if name != "attention_kwargs"
    }
    assert call["attention_kwargs"] == {**kwargs, "torch_compile": False}
    assert kwargs == {"backend": "flex-fmha"}


def test_natten_is_told_a_scale_of_zero_in_a_way_that_it_understands(calls):
    inputs = tensors((6,))
    assert torch.equal(
        na1d(**inputs, kernel_size=3, scale=0.0, backend="natten"),
        neighborhood_reference(**inputs, kernel_size=3, scale=0.0)[0],
    )
    assert calls[0]["scale"] == 1.0


@pytest.mark.parametrize("backend", [None, "gatework"])
def test_on_the_cpu_ours_is_the_default(calls, backend):
    na2d(**tensors((5, 5)), kernel_size=3, backend=backend)
    assert calls == []


def test_on_the_gpu_natten_is_the_default_once_it_was_tried(calls, monkeypatch):
    tried = engines.TRIED["neighborhood_attention"]
    with FakeTensorMode():
        query = torch.empty(1, 5, 1, 4, device="cuda")
        monkeypatch.setitem(tried, "natten", {})
        assert not uses_natten(query, NattenOptions())
        assert uses_natten(query, NattenOptions(backend="natten"))
        monkeypatch.setitem(tried, "natten", {"cuda": "some GPU"})
        assert uses_natten(query, NattenOptions())
        assert not uses_natten(query, NattenOptions(backend="gatework"))
        assert not uses_natten(query.double(), NattenOptions())


def test_where_natten_has_no_kernel_ours_answers_unless_it_was_named(calls, monkeypatch):
    monkeypatch.setattr("gatework.ops.vision.neighborhood.uses_natten", lambda query, options: True)
    inputs = tensors((5, 5))
    with pytest.warns(UserWarning, match=r"NATTEN has no kernel for this call.*no suitable backend"):
        y = na2d(**inputs, kernel_size=2)
    torch.testing.assert_close(y, neighborhood_reference(**inputs, kernel_size=2)[0])
    with pytest.raises(NotImplementedError, match="no suitable backend"):
        na2d(**inputs, kernel_size=2, backend="flex-fna")


@pytest.mark.parametrize("backend", NATTEN_BACKENDS)
def test_without_natten_its_kernels_are_ours_with_a_warning(monkeypatch, backend):
    monkeypatch.setattr(neighborhood_engine, "natten_module", lambda: None)
    inputs = tensors((5,))
    with pytest.warns(
        UserWarning, match=f"backend='{backend}' is a kernel of NATTEN, which is not installed"
    ):
        y = na1d(**inputs, kernel_size=3, backend=backend)
    torch.testing.assert_close(y, neighborhood_reference(**inputs, kernel_size=3)[0])


@pytest.mark.bad_input
def test_without_natten_it_cannot_be_asked_for(monkeypatch):
    monkeypatch.setattr(neighborhood_engine, "natten_module", lambda: None)
    with pytest.raises(ValueError, match="backend 'natten' needs the package natten, which is not installed"):
        na1d(**tensors((5,)), kernel_size=3, backend="natten")
