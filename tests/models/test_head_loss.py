"""The loss of the head in pieces: the numbers of the plain one, in less memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gatework.models.language import head_loss as module
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.models.language.head_loss import head_loss
from gatework.study.flops import FlopCounter


@pytest.fixture
def pieces(monkeypatch):
    """Take every batch in pieces of four rows."""
    monkeypatch.setattr(module, "_MOST_LOGITS", 0)
    monkeypatch.setattr(module, "_PIECE_ROWS", 4)


def example(rows=11, dim=5, vocab=7, dtype=torch.float64):
    gen = torch.Generator().manual_seed(rows)
    head = nn.Linear(dim, vocab, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.normal_(generator=gen)
    hidden = torch.randn(rows, dim, generator=gen, dtype=dtype).requires_grad_()
    return head, hidden, torch.randint(vocab, (rows,), generator=gen)


def plain(head, hidden, labels):
    return F.cross_entropy(head(hidden).float() if hidden.dtype != torch.float64 else head(hidden), labels)


def gradients(loss, head, hidden):
    return torch.autograd.grad(loss, (hidden, head.weight))


@given(rows=st.integers(1, 20), dim=st.integers(1, 6), vocab=st.integers(1, 9), size=st.integers(1, 8))
def test_pieces_give_the_loss_and_gradients_of_the_whole(rows, dim, vocab, size):
    head, hidden, labels = example(rows, dim, vocab)
    expected = plain(head, hidden, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_LOGITS", 0)
        patch.setattr(module, "_PIECE_ROWS", size)
        loss = head_loss(head, hidden, labels)
    assert "InPieces" in loss.grad_fn.next_functions[0][0].name()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, head, hidden), gradients(expected, head, hidden))


def test_gradcheck(pieces):
    head, hidden, labels = example()

    def loss(hidden, weight):
        return module._sum_in_pieces(weight, hidden, labels)

    assert torch.autograd.gradcheck(loss, (hidden, head.weight))


def test_nothing_labelled_costs_nothing(pieces):
    head, hidden, labels = example(0)
    loss = head_loss(head, hidden, labels)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, head, hidden))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_accurate_as_the_whole(pieces, dtype):
    head, hidden, labels = example(64, 32, 50, torch.float32)
    exact_loss = plain(head, hidden, labels)
    exact = gradients(exact_loss, head, hidden)
    with torch.autocast("cpu", dtype=dtype):
        loss, whole = head_loss(head, hidden, labels), plain(head, hidden, labels)
    assert loss.dtype == torch.float32
    # Logits are rounded on both sides, to 8 bits in bfloat16.
    assert (loss - exact_loss).abs() <= 2 * (whole - exact_loss).abs() + 1e-3
    for ours, theirs, wanted in zip(
        gradients(loss, head, hidden), gradients(whole, head, hidden), exact, strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - wanted).norm() <= 1.5 * (theirs - wanted).norm() + 1e-6


def test_a_head_that_does_not_learn_gets_no_gradient(pieces):
    head, hidden, labels = example()
    head.requires_grad_(False)
    (ours,) = torch.autograd.grad(head_loss(head, hidden, labels), hidden)
    (expected,) = torch.autograd.grad(plain(head, hidden, labels), hidden)
    torch.testing.assert_close(ours, expected)


def test_second_derivatives_are_refused_and_not_wrong(pieces):
    head, hidden, labels = example()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(head_loss(head, hidden, labels), hidden, create_graph=True)


class Doubled(nn.Linear):
    """A head that is more than a product with its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_other_heads_and_hooks_are_run_as_they_are(pieces):
    head, hidden, labels = example()
    seen = []
    head.register_forward_hook(lambda *arguments: seen.append(arguments))
    torch.testing.assert_close(head_loss(head, hidden, labels), plain(head, hidden, labels))
    assert len(seen) == 2
    for other in (Doubled(5, 7, bias=False), nn.Linear(5, 7), nn.utils.parametrizations.weight_norm(head)):
        other = other.double()
        torch.testing.assert_close(head_loss(other, hidden, labels), plain(other, hidden, labels))


def test_pieces_keep_gradients_instead_of_logits(monkeypatch):
    head, hidden, labels = example(300, 4, 200, torch.float32)
    kept = {}
    for most in (2**40, 0):
        monkeypatch.setattr(module, "_MOST_LOGITS", most)
        kept[most] = 0

        def save(tensor, most=most):
            kept[most] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            head_loss(head, hidden, labels)
    assert kept[2**40] >= 300 * 200
    assert kept[0] == hidden.numel() + head.weight.numel()


def test_operations_are_counted_in_pieces_too(monkeypatch):
    head, hidden, labels = example(64, 128, 96, torch.float32)
    counts = []
    for most in (2**40, 0):
        monkeypatch.setattr(module, "_MOST_LOGITS", most)
        with FlopCounter() as counter:
            head_loss(head, hidden, labels).backward()
        counts.append(counter.flops)
    # Three products; what comes beside them differs by a few operations per logit.
    assert min(counts) >= 6 * 64 * 128 * 96
    assert max(counts) <= 1.02 * min(counts)


def test_a_model_learns_the_same_in_pieces(monkeypatch):
    torch.manual_seed(0)
    model = GateworkForCausalLM(GateworkConfig(vocab_size=31, hidden_size=8, mixers=["base_conv"])).double()
    x = torch.randint(31, (2, 13))
    found = []
    for most in (2**40, 0):
        monkeypatch.setattr(module, "_MOST_LOGITS", most)
        model.zero_grad()
        loss = model.train()(x, labels=x).loss
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*found)
