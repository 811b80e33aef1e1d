"""Linear recurrences in chunks equal their definitions, which equal the equations written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops.recurrence.linear_recurrence import chunked
from tests.ops.recurrence.linear_recurrence_cases import DECAYS, FORMS, call, cut, draw, with_gradients

every_form = pytest.mark.parametrize("form", FORMS)
every_decay = pytest.mark.parametrize("decay", DECAYS)


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(list(FORMS)),
    batch=st.integers(0, 2),
    heads=st.integers(1, 2),
    length=st.integers(0, 20) | st.integers(62, 68),
    key_dim=st.integers(1, 5),
    value_dim=st.integers(1, 4),
    decay=st.sampled_from(DECAYS),
    strength=st.sampled_from([0.0, 0.1, 3.0, 1e3]),
    chunk_size=st.none() | st.integers(1, 17),
    seed=st.integers(0, 99),
)
def test_fast_path_equals_definition(
    form, batch, heads, length, key_dim, value_dim, decay, strength, chunk_size, seed
):
    sizes = (batch, heads, length, key_dim, value_dim)
    tensors = draw(form, decay, sizes=sizes, seed=seed, strength=strength)
    fast, reference = FORMS[form][:2]
    ours = with_gradients(call(fast, form, tensors, chunk_size=chunk_size), tensors, seed)
    theirs = with_gradients(call(reference, form, tensors), tensors, seed)
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-8, atol=1e-8)


@every_form
def test_the_definition_is_the_equation(form):
    """One head, two tokens, all decays written out as matrices."""
    tensors = draw(form, "channel", sizes=(1, 1, 2, 3, 2))
    outputs, state = call(FORMS[form][1], form, tensors, scale=0.7)
    expected = tensors["initial_state"][0, 0]
    for t in range(2):
        q, k, v = (tensors[name][0, 0, t] for name in "qkv")
        decayed = torch.diag(tensors["log_decay"][0, 0, t].exp()) @ expected
        read = None
        if form == "delta":
            beta = tensors["beta"][0, 0, t]
            householder = torch.eye(3, dtype=q.dtype) - beta * torch.outer(k, k)
            after = householder @ decayed + beta * torch.outer(k, v)
        elif form == "low_rank":
            moved = torch.outer(tensors["b"][0, 0, t], tensors["a"][0, 0, t]) @ expected
            after = decayed + moved + torch.outer(k, v)
        else:
            after = decayed + torch.outer(k, v)
            if form == "bonus":
                read = expected + torch.outer(tensors["bonus"][0] * k, v)
        torch.testing.assert_close(outputs[0, 0, t], 0.7 * (after if read is None else read).T @ q)
        expected = after
    torch.testing.assert_close(state[0, 0], expected)


@every_form
@every_decay
def test_gradients(form, decay):
    tensors = draw(form, decay, sizes=(1, 1, 3, 2, 1))
    names = list(tensors)

    def function(*values):
        return call(FORMS[form][0], form, dict(zip(names, values, strict=True)), chunk_size=2)

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()))


@every_form
@every_decay
def test_any_chunking_continues(form, decay):
    tensors = draw(form, decay, sizes=(2, 2, 70, 4, 3), seed=1)
    fast = FORMS[form][0]
    whole = with_gradients(call(fast, form, tensors), tensors)
    parts, start, state = [], 0, tensors["initial_state"]
    for size in (1, 2, 3, 33, 0, 31):
        piece = cut(tensors, slice(start, start + size))
        y, state = call(fast, form, piece | {"initial_state": state})
        parts.append(y)
        start += size
    assert start == 70
    pieced = with_gradients((torch.cat(parts, 2), state), tensors)
    for mine, right in zip(pieced, whole, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-10)


@every_form
@every_decay
def test_long_sequences_without_gradients_are_computed_in_parts(form, decay, monkeypatch):
    tensors = draw(form, decay, sizes=(2, 2, 70, 4, 3), seed=1)
    whole = call(FORMS[form][0], form, tensors)
    calls, inside = [], chunked.split_chunks
    monkeypatch.setattr(chunked, "_SEGMENT", 32)
    monkeypatch.setattr(chunked, "split_chunks", lambda x, size: calls.append(x.shape[2]) or inside(x, size))
    with torch.no_grad():
        parts = call(FORMS[form][0], form, tensors)
    assert set(calls) == {32, 6}
    for mine, right in zip(parts, whole, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-10)


@every_form
@every_decay
def test_steps_equal_the_definition(form, decay):
    tensors = draw(form, decay, sizes=(2, 2, 5, 4, 3), seed=2)
    _, reference, step, before, after = FORMS[form]
    whole, final = call(reference, form, tensors)
    state, bonus = tensors["initial_state"], {"bonus": tensors["bonus"]} if form == "bonus" else {}
    for t in range(5):
        token = {name: x[:, :, t] for name, x in tensors.items() if name not in ("initial_state", "bonus")}
        given_state = state.clone()
        vectors = [token[n] for n in before] + [token.get("log_decay")] + [token[n] for n in after]
        y, new = step(*vectors, state, **bonus)
        torch.testing.assert_close(y, whole[:, :, t])
        torch.testing.assert_close(state, given_state, rtol=0, atol=0)
        state = new
    torch.testing.assert_close(state, final)


@every_form
@every_decay
def test_no_output_sees_the_future(form, decay):
    tensors = {name: x.detach() for name, x in draw(form, decay, sizes=(1, 1, 80, 3, 2), seed=3).items()}
    fast = FORMS[form][0]
    before, _ = call(fast, form, tensors)
    changed = {name: x if name in ("initial_state", "bonus") else x.clone() for name, x in tensors.items()}
    for name, tensor in changed.items():
        if name not in ("initial_state", "bonus"):
            tensor[:, :, 45:] *= 0.5
    after, _ = call(fast, form, changed)
    torch.testing.assert_close(after[:, :, :45], before[:, :, :45], rtol=0, atol=1e-12)
    assert (after[:, :, 45:] - before[:, :, 45:]).abs().min() > 0


def test_a_chunk_size_changes_how_much_is_computed_at_once():
    """Scores fill a matrix per chunk: the largest tensor kept for the gradients tells the chunk size."""
    tensors = draw("gated", "none", sizes=(1, 1, 256, 2, 2))

    def most_scores(**options):
        widths = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: widths.append(x.shape[-1]) or x, lambda x: x):
            call(FORMS["gated"][0], "gated", tensors, **options)
        return max(widths)

    assert most_scores(chunk_size=128) == 128
    assert most_scores(chunk_size=8) == 8
    assert most_scores() == 64


@every_form
@every_decay
def test_what_is_kept_for_gradients_grows_with_the_length(form, decay):
    def kept(length):
        tensors = draw(form, decay, sizes=(1, 1, length, 4, 4), dtype=torch.float32)
        sizes = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x,
            lambda x: x,
        )
        with hooks:
            call(FORMS[form][0], form, tensors)
        return sum(sizes.values())

    assert kept(2048) < 2.2 * kept(1024)
