"""Linear recurrences under strong decay, in half precision, compiled, exported, and called wrongly."""

from __future__ import annotations

import pytest
import torch

from gatework.ops.recurrence.linear_recurrence import delta_rule, gated_linear_attention, low_rank_recurrence
from tests.ops.recurrence.linear_recurrence_cases import DECAYS, FORMS, call, draw, with_gradients

every_form = pytest.mark.parametrize("form", FORMS)


@every_form
@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("strength", [1e2, 1e4, 1e30])
def test_strong_decay_underflows_and_never_overflows(form, decay, strength):
    tensors = draw(form, decay, sizes=(1, 2, 100, 4, 3), seed=4, strength=strength, dtype=torch.float32)
    wide = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    fast, reference = FORMS[form][:2]
    ours = with_gradients(call(fast, form, tensors), tensors)
    theirs = with_gradients(call(reference, form, wide), wide)
    assert all(x.isfinite().all() for x in ours)
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)


@every_form
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_token_that_wipes_the_state_leaves_later_decays_exact(form, decay):
    """Differences of running sums would lose the small decays beside the large one."""
    tensors = draw(form, decay, sizes=(1, 2, 64, 4, 3), seed=5, strength=0.1, dtype=torch.float32)
    tensors["log_decay"] = tensors["log_decay"].detach().clone()
    tensors["log_decay"][:, :, 3] = -1e6
    tensors["log_decay"].requires_grad_()
    fast, reference = FORMS[form][:2]
    y, state = call(fast, form, tensors)
    wide = {name: x.double() for name, x in tensors.items()}
    right, right_state = call(reference, form, wide)
    torch.testing.assert_close(y.double(), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.double(), right_state, rtol=1e-5, atol=1e-5)


@every_form
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(form, decay, dtype):
    tensors = {name: x.detach() for name, x in draw(form, decay, sizes=(1, 2, 80, 4, 3), seed=6).items()}
    half = {name: x.to(dtype) for name, x in tensors.items()}
    wide = {name: x.float() for name, x in half.items()}
    fast = FORMS[form][0]
    y, state = call(fast, form, half)
    expected, expected_state = call(fast, form, wide)
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y, expected.to(dtype))
    torch.testing.assert_close(state, expected_state)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = call(fast, form, wide)
    torch.testing.assert_close(under_autocast, expected, rtol=0, atol=0)


@every_form
def test_a_step_keeps_the_precision_of_the_state(form):
    tensors = {name: x.detach() for name, x in draw(form, "channel", sizes=(1, 2, 1, 4, 3)).items()}
    half = {n: x if n == "initial_state" else x.bfloat16() for n, x in tensors.items()}
    _, reference, step, before, after = FORMS[form]
    names = [*before, "log_decay", *after]
    bonus = {"bonus": half["bonus"]} if form == "bonus" else {}
    y, state = step(*(half[name][:, :, 0] for name in names), half["initial_state"], **bonus)
    expected, expected_state = call(reference, form, {name: x.double() for name, x in half.items()})
    assert (y.dtype, state.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(y, expected[:, :, 0])
    torch.testing.assert_close(state, expected_state)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("form", "decay"), [("gated", "none"), ("bonus", "head"), ("delta", "channel"), ("low_rank", "channel")]
)
def test_one_graph(form, decay):
    torch.compiler.reset()
    tensors = draw(form, decay, sizes=(1, 2, 9, 4, 3), seed=7, dtype=torch.float32)
    fast = FORMS[form][0]
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    ours = with_gradients(call(compiled, form, tensors, chunk_size=4), tensors)
    for mine, right in zip(
        ours, with_gradients(call(fast, form, tensors, chunk_size=4), tensors), strict=True
    ):
        torch.testing.assert_close(mine, right)


class Exported(torch.nn.Module):
    """A form as a module of its token tensors."""

    def __init__(self, form, names):
        super().__init__()
        self.form, self.names = form, names

    def forward(self, *values):
        return call(FORMS[self.form][0], self.form, dict(zip(self.names, values, strict=True)))


@pytest.mark.compile
@every_form
def test_export(form):
    tensors = {n: x.detach() for n, x in draw(form, "channel", sizes=(1, 1, 40, 4, 3)).items()}
    module = Exported(form, list(tensors))
    program = torch.export.export(module, tuple(tensors.values()))
    for mine, right in zip(program.module()(*tensors.values()), module(*tensors.values()), strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 2, 5, 4)}, r"k must have the shape of q"),
        ({"v": torch.zeros(1, 2, 6, 3)}, r"v must have shape .* got \(1, 2, 6, 3\)"),
        ({"log_decay": torch.zeros(1, 2)}, r"log_decay must have shape \(1, 2, 5\).*got \(1, 2\)"),
        ({"initial_state": torch.zeros(1, 2, 3, 4)}, r"initial_state must have shape \(1, 2, 3, 2\)"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"engine": "cuda"}, r"engine must be one of reference, chunked, fla, got 'cuda'"),
    ],
)
@every_form
def test_what_no_form_takes_is_named(form, change, message):
    tensors = draw(form, "none", sizes=(1, 2, 5, 3, 2)) | change
    options = {name: tensors.pop(name) for name in ("chunk_size", "engine") if name in tensors}
    with pytest.raises(ValueError, match=message):
        call(FORMS[form][0], form, tensors, **options)


@pytest.mark.bad_input
def test_shapes_of_single_forms_are_named():
    q = k = v = torch.zeros(1, 2, 5, 3)
    with pytest.raises(ValueError, match=r"bonus must have shape \(heads, key_dim\)=\(2, 3\), got \(3,\)"):
        gated_linear_attention(q, k, v, bonus=torch.zeros(3))
    with pytest.raises(ValueError, match=r"beta must have shape .*=\(1, 2, 5\), got \(1, 2, 5, 1\)"):
        delta_rule(q, k, v, torch.zeros(1, 2, 5, 1))
    with pytest.raises(ValueError, match=r"a must have shape .*=\(1, 2, 5, 3\), got \(1, 2, 5, 2\)"):
        low_rank_recurrence(q, k, v, None, torch.zeros(1, 2, 5, 2), k)
    with pytest.raises(ValueError, match=r"b must have shape .*=\(1, 2, 5, 3\), got \(2, 5, 3\)"):
        low_rank_recurrence(q, k, v, None, k, torch.zeros(2, 5, 3))
