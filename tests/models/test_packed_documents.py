"""The language model on packed documents: each is read as if it were alone, in training and evaluation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gatework.data.segment import TokenBatch
from gatework.layers.sequence import packed_documents
from gatework.study.flops import step_cost
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Training
from tests.layers.sequence.test_packed_documents import SEQ_IDX
from tests.models.test_decoder import MIXERS, every_mixer, tiny, tokens

#: Five documents, some of one length.
FEW = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [3, 3, -1, 4, 4, 4, 4], [5] * 7])

CLOSE = {"rtol": 0, "atol": 1e-10}


def pieces(seq_idx, *tensors):
    """What each tensor holds of each document, in order."""
    for row in range(len(seq_idx)):
        start = 0
        for length in torch.unique_consecutive(seq_idx[row], return_counts=True)[1].tolist():
            if seq_idx[row, start] >= 0:
                yield [tensor[row, start : start + length] for tensor in tensors]
            start += length


@pytest.fixture
def many_groups(monkeypatch):
    monkeypatch.setattr(packed_documents, "_GROUP_COST", 1)


@every_mixer
def test_loss_and_gradients_are_those_of_the_documents_alone(mixer, many_groups):
    """In training, auxiliary losses included: the mean over tokens of what each document gives."""
    model = tiny([MIXERS[mixer]], learned_positions=7).double().train()
    x, labels = tokens(*FEW.shape), tokens(*FEW.shape, seed=1)
    loss = model(x, shift_labels=labels.masked_fill(FEW < 0, -100), seq_idx=FEW).loss
    total = int((FEW >= 0).sum())
    expected = sum(
        len(ids) / total * model(ids[None], shift_labels=following[None]).loss
        for ids, following in pieces(FEW, x, labels)
    )
    torch.testing.assert_close(loss, expected, **CLOSE)
    parameters = list(model.parameters())
    found, alone = (torch.autograd.grad(each, parameters) for each in (loss, expected))
    for ours, theirs in zip(found, alone, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=9),
    width=st.integers(1, 11),
    changed=st.integers(0, 98),
)
def test_no_document_sees_another(lengths, width, changed):
    """Any lengths in rows of any width: logits are those of each alone, and a change stays where it is."""
    numbers = [-1 if pad else index for index, (pad, length) in enumerate(lengths) for _ in range(length)]
    numbers += [-1] * (-len(numbers) % width)
    seq_idx = torch.tensor(numbers).view(-1, width)
    model = tiny([MIXERS["base_conv"], MIXERS["attention"]], learned_positions=11).double().eval()
    x = tokens(*seq_idx.shape)
    logits = model(x, seq_idx=seq_idx).logits
    assert logits.isfinite().all()
    for ids, found in pieces(seq_idx, x, logits):
        torch.testing.assert_close(found[None], model(ids[None]).logits, **CLOSE)
    place = changed % x.numel()
    other = x.clone().view(-1)
    other[place] = (other[place] + 1) % 23
    moved = (model(other.view_as(x), seq_idx=seq_idx).logits != logits).any(2)
    row, column = divmod(place, width)
    before = torch.arange(width) < column
    assert not moved[row, before].any()
    ends = (seq_idx[row, column:] != seq_idx[row, column]).long().argmax()
    if ends:
        assert not moved[row, column + ends :].any()
    assert not moved[torch.arange(len(x)) != row].any()


def test_a_number_that_returns_is_another_document():
    model = tiny().eval()
    x = tokens(1, 6)
    numbers = (torch.tensor([[3, 3, 1, 1, 3, 3]]), torch.tensor([[0, 0, 1, 1, 2, 2]], dtype=torch.int32))
    torch.testing.assert_close(*(model(x, seq_idx=each).logits for each in numbers))


def test_rows_of_one_document_are_ordinary_rows():
    model = tiny([MIXERS["mamba2"]]).eval()
    x = tokens(3, 6)
    assert torch.equal(model(x, seq_idx=torch.zeros_like(x)).logits, model(x).logits)
    ones = torch.ones_like(x)
    assert torch.equal(model(x, seq_idx=ones, attention_mask=ones).logits, model(x).logits)
    empty = model(x[:0], seq_idx=x[:0]).logits
    assert empty.shape == (0, 6, 23)
    assert model(x, seq_idx=-ones).logits.isfinite().all()


def test_the_last_token_of_a_document_predicts_nothing():
    """Of ``labels``, which are shifted here; those that are shifted already are taken as they are."""
    model = tiny().eval()
    x = tokens(*SEQ_IDX.shape)
    loss = model(x, labels=x, seq_idx=SEQ_IDX).loss
    documents = [ids for (ids,) in pieces(SEQ_IDX, x) if len(ids) > 1]
    sums = [F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum") for ids in documents]
    torch.testing.assert_close(loss, sum(sums) / sum(len(ids) - 1 for ids in documents))
    labels = F.pad(x[:, 1:], (0, 1), value=-100)
    logits, picked = model.labelled_logits(x, labels, seq_idx=SEQ_IDX)
    torch.testing.assert_close(logits, model(x, seq_idx=SEQ_IDX).logits[labels != -100])
    assert torch.equal(picked, labels[labels != -100])


def test_checkpointing_and_autocast(many_groups):
    model = tiny([MIXERS["attention"], MIXERS["gated_linear_attention"]]).train()
    x = tokens(*SEQ_IDX.shape)
    model(x, labels=x, seq_idx=SEQ_IDX).loss.backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.eval()(x, seq_idx=SEQ_IDX).logits
    expected = model(x, seq_idx=SEQ_IDX).logits
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()
    model.train().activation_checkpointing_enable()
    model(x, labels=x, seq_idx=SEQ_IDX).loss.backward()
    for ours, theirs in zip([parameter.grad for parameter in model.parameters()], plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_pairs_of_one_document_are_counted():
    """Arithmetic of a step: half as much attention where rows hold two documents each."""
    model = tiny([{"name": "attention"}], hidden_size=16)
    x = tokens(2, 512)
    costs = [
        step_cost(NextTokenModule(model, Training(), 0.1), TokenBatch(x, x, [], seq_idx))
        for seq_idx in (None, torch.arange(512).expand(2, -1) // 256)
    ]
    assert costs[1].flops < 0.75 * costs[0].flops


@pytest.mark.compile
def test_compiled_models_read_documents_outside_of_their_graphs():
    torch.compiler.reset()
    model = tiny([MIXERS["base_conv"]], num_hidden_layers=1, learned_positions=10).eval()
    x = tokens(*SEQ_IDX.shape)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend)
    known = None
    with torch.no_grad():
        for shift in range(2):
            seq_idx = SEQ_IDX.roll(shift, 1)
            torch.testing.assert_close(compiled(x, seq_idx=seq_idx).logits, model(x, seq_idx=seq_idx).logits)
            known = known or len(graphs)
    assert known == len(graphs), "other documents made other graphs"


@pytest.mark.bad_input
def test_what_does_not_go_with_packed_documents_is_refused():
    model = tiny(learned_positions=9).eval()
    x = tokens(*SEQ_IDX.shape)
    with pytest.raises(ValueError, match=r"\(rows, length\) = \(5, 10\), got \(5, 9\)"):
        model(x, seq_idx=SEQ_IDX[:, :9])
    with pytest.raises(TypeError, match=r"integer numbers of documents, got torch\.float32"):
        model(x, seq_idx=SEQ_IDX.float())
    with pytest.raises(ValueError, match=r"document of 10 tokens is longer than .*learned_positions=9"):
        model(x, seq_idx=SEQ_IDX)
    model = tiny().eval()
    with pytest.raises(ValueError, match=r"seq_idx packs .* without past_key_values and use_cache"):
        model(x, seq_idx=SEQ_IDX, use_cache=True)
    cache = model(x, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"seq_idx packs .* without past_key_values and use_cache"):
        model(x, seq_idx=SEQ_IDX, past_key_values=cache)
    for mask in (SEQ_IDX >= 0, (SEQ_IDX >= 0).flip(1)):
        with pytest.raises(ValueError, match="padding in attention_mask: say it by -1 in seq_idx alone"):
            model(x, seq_idx=SEQ_IDX, attention_mask=mask.long())
    with pytest.raises(ValueError, match="seq_idx packs"):
        model.generate(x, seq_idx=SEQ_IDX, max_new_tokens=2)
