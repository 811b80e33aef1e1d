"""flash-linear-attention needs a GPU: stand-ins compute what it documents, in its layout."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest
import torch
from torch._subclasses import FakeTensorMode

from gatework.ops import engines
from gatework.ops.recurrence.linear_recurrence import (
    delta_rule_reference,
    engine_fla,
    gated_linear_attention_reference,
    low_rank_recurrence_reference,
)
from tests.ops.recurrence.linear_recurrence_cases import DECAYS, FORMS, call, draw

every_form = pytest.mark.parametrize("form", FORMS)
every_decay = pytest.mark.parametrize("decay", DECAYS)


def heads_first(x):
    return x.transpose(1, 2).float()


def answer(function, tokens, scale, initial_state, output_final_state, **others):
    """The definition in the layout of fla: (batch, length, heads, dim), states in float32."""
    assert initial_state is None or initial_state.dtype == torch.float32
    assert len({x.dtype for x in tokens}) == 1, "q, k and v have one dtype"
    dtype = tokens[0].dtype
    wide = [heads_first(x) for x in tokens]
    outputs, state = function(*wide, scale=scale, initial_state=initial_state, **others)
    return outputs.transpose(1, 2).to(dtype), state if output_final_state else None


def chunk_simple_gla(q, k, v, g=None, scale=None, initial_state=None, output_final_state=False):
    assert g is None or g.shape == q.shape[:3]
    decay = None if g is None else heads_first(g)
    function = gated_linear_attention_reference
    return answer(function, (q, k, v), scale, initial_state, output_final_state, log_decay=decay)


def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    assert q.shape == k.shape == g.shape
    function = gated_linear_attention_reference
    return answer(function, (q, k, v), scale, initial_state, output_final_state, log_decay=heads_first(g))


def chunk_rwkv6(r, k, v, w, u, scale=None, initial_state=None, output_final_state=False):
    assert w.shape == r.shape
    assert u.shape == r.shape[2:]
    function = gated_linear_attention_reference
    others = {"log_decay": heads_first(w), "bonus": u.float()}
    return answer(function, (r, k, v), scale, initial_state, output_final_state, **others)


def chunk_delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False):
    assert q.dtype != torch.float32
    others = {"beta": heads_first(beta)}
    return answer(delta_rule_reference, (q, k, v), scale, initial_state, output_final_state, **others)


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    assert g.shape == beta.shape == q.shape[:3]
    others = {"beta": heads_first(beta), "log_decay": heads_first(g)}
    return answer(delta_rule_reference, (q, k, v), scale, initial_state, output_final_state, **others)


def chunk_kda(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    assert g.shape == q.shape
    others = {"beta": heads_first(beta), "log_decay": heads_first(g)}
    return answer(delta_rule_reference, (q, k, v), scale, initial_state, output_final_state, **others)


def chunk_dplr_delta_rule(q, k, v, a, b, gk, scale=None, initial_state=None, output_final_state=False):
    assert a.shape == b.shape == gk.shape == q.shape
    others = {"a": heads_first(a), "b": heads_first(b), "log_decay": heads_first(gk)}
    function = low_rank_recurrence_reference
    return answer(function, (q, k, v), scale, initial_state, output_final_state, **others)


KERNELS = {
    "simple_gla": chunk_simple_gla,
    "gla": chunk_gla,
    "rwkv6": chunk_rwkv6,
    "delta_rule": chunk_delta_rule,
    "gated_delta_rule": chunk_gated_delta_rule,
    "kda": chunk_kda,
    "generalized_delta_rule": chunk_dplr_delta_rule,
}


@pytest.fixture
def calls(monkeypatch):
    """Put stand-ins where fla would be imported from; return the names of the kernels called."""
    seen = []

    def noted(kernel):
        def run(*args, **kwargs):
            seen.append(kernel.__name__)
            return kernel(*args, **kwargs)

        return run

    def put(name, **contents):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    put("fla")
    put("fla.ops")
    for name, kernel in KERNELS.items():
        put(f"fla.ops.{name}", **{kernel.__name__: noted(kernel)})
    return seen


KERNEL_OF = {
    ("gated", "none"): "chunk_simple_gla",
    ("gated", "head"): "chunk_simple_gla",
    ("gated", "channel"): "chunk_gla",
    ("delta", "none"): "chunk_delta_rule",
    ("delta", "head"): "chunk_gated_delta_rule",
    ("delta", "channel"): "chunk_kda",
    **{("bonus", decay): "chunk_rwkv6" for decay in DECAYS},
    **{("low_rank", decay): "chunk_dplr_delta_rule" for decay in DECAYS},
}


@every_form
@every_decay
@pytest.mark.parametrize("given_state", [True, False])
def test_the_translation_keeps_the_meaning(calls, form, decay, given_state):
    tensors = {n: x.bfloat16() for n, x in draw(form, decay, sizes=(2, 3, 5, 4, 6)).items()}
    if not given_state:
        del tensors["initial_state"]
    for options in ({}, {"scale": 0.3}):
        ours = call(FORMS[form][0], form, tensors, engine="fla", **options)
        right = call(FORMS[form][0], form, tensors, engine="chunked", **options)
        assert [x.dtype for x in ours] == [torch.bfloat16, torch.float32]
        for mine, expected in zip(ours, right, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-2, atol=1e-3)
    assert calls == [KERNEL_OF[form, decay]] * 2


def test_gradients_come_back_through_the_translation(calls):
    tensors = draw("gated", "channel", sizes=(1, 2, 5, 4, 3), dtype=torch.float32)
    outputs, _ = call(FORMS["gated"][0], "gated", tensors, engine="fla")
    expected, _ = call(FORMS["gated"][0], "gated", tensors, engine="reference")
    weights = torch.randn_like(outputs)
    leaves = list(tensors.values())
    ours = torch.autograd.grad(outputs, leaves, weights)
    for mine, right in zip(ours, torch.autograd.grad(expected, leaves, weights), strict=True):
        torch.testing.assert_close(mine, right)
    assert calls == ["chunk_gla"]


def test_nothing_on_a_cpu_goes_there_by_itself(calls):
    for dtype in (torch.bfloat16, torch.float32):
        tensors = {n: x.to(dtype) for n, x in draw("gated", "head").items()}
        call(FORMS["gated"][0], "gated", tensors)
        call(FORMS["gated"][0], "gated", tensors, engine="chunked")
    assert calls == []


@pytest.mark.parametrize("operator", ["gated_linear_attention", "delta_rule", "low_rank_recurrence"])
def test_half_precisions_on_a_gpu_go_there_by_themselves_once_it_was_tried(calls, operator, monkeypatch):
    def wanted():
        found = []
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            with FakeTensorMode():
                x = torch.empty(1, 1, 1, 1, dtype=dtype, device="cuda")
                found += [dtype] if engine_fla.is_wanted(None, operator, x, x) else []
        return found

    monkeypatch.setitem(engines.TRIED[operator], "fla", {})
    assert wanted() == []
    monkeypatch.setitem(engines.TRIED[operator], "fla", {"cuda": "some GPU"})
    assert wanted() == [torch.bfloat16, torch.float16]


@pytest.mark.bad_input
def test_precisions_that_its_kernels_lack_are_named(calls):
    for form, dtype in (("gated", torch.float64), ("delta", torch.float32), ("low_rank", torch.float32)):
        tensors = {n: x.to(dtype) for n, x in draw(form, "head").items()}
        with pytest.raises(ValueError, match=f"engine 'fla' computes this recurrence in .*, got {dtype}"):
            call(FORMS[form][0], form, tensors, engine="fla")
    assert calls == []


@every_form
def test_an_engine_that_is_not_installed_says_how_to_get_it(form):
    assert "fla" not in sys.modules
    with pytest.raises(ImportError, match=r"pip install 'gatework\[fla\]'"):
        call(FORMS[form][0], form, draw(form, "none"), engine="fla")
