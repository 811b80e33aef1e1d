"""A decoder on a GPU: training under autocast, compiled, decoding from its cache; the head's loss."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="language models are Transformers models")

from gatework.models.language import head_loss as head_loss_file
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.models.language.head_loss import head_loss

pytestmark = pytest.mark.gpu

#: Stacks that exercise attention under masks, long convolutions, recurrences and scans.
STACKS = {
    "attention": ["attention", {"name": "sliding_window", "window_size": 9}],
    "convolutions": ["base_conv", "hyena"],
    "recurrences": [{"name": "gated_delta_net", "num_heads": 2}, {"name": "retention", "num_heads": 2}],
    "scans": [{"name": "mamba", "state_dim": 4}, "rwkv4"],
}


def decoder(stack: str, **options) -> GateworkForCausalLM:
    torch.manual_seed(0)
    config = GateworkConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, mixers=STACKS[stack], context_length=64, **options
    )
    return GateworkForCausalLM(config)


def batch(device: str) -> torch.Tensor:
    return torch.randint(64, (4, 64), generator=torch.Generator().manual_seed(1)).to(device)


@pytest.mark.parametrize("stack", STACKS)
def test_training_under_autocast_follows_the_cpu_in_float32(stack, device):
    def losses(place: str, *, half: bool) -> list[float]:
        model, ids = decoder(stack).to(place), batch(place)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        found = []
        for _ in range(8):
            with torch.autocast(place, torch.bfloat16, enabled=half):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
        return found

    ours, right = losses(device, half=True), losses("cpu", half=False)
    assert ours[-1] < ours[0] - 0.3
    # bfloat16 has 8 bits, and eight steps of AdamW carry every rounding on.
    torch.testing.assert_close(ours, right, rtol=0.05, atol=0)


@pytest.mark.parametrize("stack", STACKS)
def test_decoding_from_the_cache_is_the_whole_sequence(stack, device):
    model, ids = decoder(stack).double().to(device).eval(), batch(device)[:2, :20]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        output = model(input_ids=ids[:, :15], use_cache=True)
        logits = [output.logits]
        for at in range(15, 20):
            output = model(
                input_ids=ids[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True
            )
            logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=0, atol=1e-9)
    right = copy.deepcopy(model).cpu()
    with torch.no_grad():
        torch.testing.assert_close(whole.cpu(), right(input_ids=ids.cpu()).logits, rtol=0, atol=1e-9)
    generated = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(generated.cpu(), right.generate(ids.cpu(), max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("stack", STACKS)
def test_compiled_it_trains_alike(stack, device):
    model, ids = decoder(stack).to(device), batch(device)
    compiled = torch.compile(copy.deepcopy(model))
    ours, right = (each(input_ids=ids, labels=ids).loss for each in (compiled, model))
    ours.backward()
    right.backward()
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
    pairs = zip(compiled.named_parameters(), model.parameters(), strict=True)
    for (name, our_parameter), parameter in pairs:
        if parameter.grad is None:
            assert our_parameter.grad is None, name
            continue
        most = float(parameter.grad.abs().max()) or 1.0
        torch.testing.assert_close(our_parameter.grad, parameter.grad, rtol=0, atol=2e-3 * most, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_head_s_loss_in_pieces(dtype, device, monkeypatch):
    monkeypatch.setattr(head_loss_file, "_MOST_LOGITS", 1)
    gen = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False).to(dtype)
    hidden = torch.randn(1200, 16, generator=gen).to(dtype)
    labels = torch.randint(50, (1200,), generator=gen)

    def results(head, hidden):
        hidden = hidden.clone().requires_grad_()
        loss = head_loss(head, hidden, labels.to(hidden.device))
        return loss, *torch.autograd.grad(loss, (hidden, head.weight))

    ours = results(copy.deepcopy(head).to(device), hidden.to(device))
    monkeypatch.undo()
    right = results(head.double(), hidden.double())
    for our_part, part in zip(ours, right, strict=True):
        part = part.detach()
        most = float(part.abs().max()) * (1e-4 if dtype == torch.float32 else 2e-2)
        torch.testing.assert_close(our_part.cpu().double(), part, rtol=0, atol=most)
