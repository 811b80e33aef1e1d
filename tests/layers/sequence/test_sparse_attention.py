"""Attention to parts of the past against its equations, written out query by query."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch

import gatework
from gatework.layers.sequence.attention_sparse import BigBird
from gatework.layers.sequence.native_sparse_attention import NativeSparseAttention
from gatework.masks.earlier_blocks import hashed
from gatework.ops.attention import choice
from gatework.ops.attention.options import Options

DIM, LENGTH = 8, 23


def randomised(mixer):
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return mixer.double()


def rotated(x, position):
    """Pairs of neighbouring channels, turned by the position."""
    y = x.clone()
    for pair in range(len(x) // 2):
        angle = position * 10000 ** (-2 * pair / len(x))
        first, second = x[2 * pair], x[2 * pair + 1]
        y[2 * pair] = first * math.cos(angle) - second * math.sin(angle)
        y[2 * pair + 1] = second * math.cos(angle) + first * math.sin(angle)
    return y


def mean_of(q, keys, values):
    """Softmax attention of one query; also the scores."""
    scores = torch.stack(keys) @ q / math.sqrt(len(q))
    return scores.softmax(0) @ torch.stack(values), scores


def compressed(mixer, q, k, v, i):
    """The first branch of one head at position ``i``, ``k`` and ``v`` those of its head; scores of blocks."""
    head, size = k.head, mixer.block_size
    blocks = [slice(b * size, (b + 1) * size) for b in range(len(k.rows) // size) if (b + 1) * size - 1 < i]
    read = [
        [*memory[head], *(network((x.rows[block] + places[head]).flatten()) for block in blocks)]
        for x, memory, places, network in (
            (k, mixer.memory[0], mixer.k_positions, mixer.k_compress),
            (v, mixer.memory[1], mixer.v_positions, mixer.v_compress),
        )
    ]
    y, scores = mean_of(q[i], *read)
    return y, scores[mixer.memory.shape[2] :]


def selected(mixer, q, k, v, i, chosen):
    """The second branch."""
    size, everything = mixer.block_size, mixer.num_selected_blocks == 0
    reads = [j for j in range(i + 1) if everything or j // size in chosen or j // size == i // size]
    keys = [rotated(k.rows[j], j) for j in reads]
    return mean_of(rotated(q[i], i), keys, [v.rows[j] for j in reads])[0]


def near(mixer, q, k, v, i):
    """The third branch; the authors look ahead, also at zeros that they append to the last window."""
    window, length = mixer.window_size, len(k.rows)
    last = min(i + window, -(-length // window) * window - 1) if mixer.looks_ahead else i
    zero = torch.zeros_like(q[i])
    positions = range(max(0, i - window), last + 1)
    keys = [rotated(k.rows[j], j) if j < length else zero for j in positions]
    return mean_of(rotated(q[i], i), keys, [v.rows[j] if j < length else zero for j in positions])[0]


class Head(NamedTuple):
    """Keys or values of all tokens, of one head."""

    rows: torch.Tensor
    head: int


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"num_heads": 2, "block_size": 4, "num_selected_blocks": 2, "window_size": 5}, LENGTH),
        (
            {"num_heads": 4, "num_kv_heads": 2, "block_size": 3, "num_selected_blocks": 1, "num_memory": 2},
            LENGTH,
        ),
        (
            {
                "num_heads": 2,
                "num_kv_heads": 1,
                "block_size": 2,
                "num_selected_blocks": 3,
                "heads_share_blocks": False,
            },
            LENGTH,
        ),
        ({"block_size": 4, "num_selected_blocks": 0, "norm": False, "compress_ratio": 0.3}, LENGTH),
        ({"block_size": 4, "num_selected_blocks": 20, "window_size": 7, "compat": "official"}, 24),
        ({"block_size": 30}, LENGTH),
    ],
)
def test_native_sparse_attention_is_its_equation(options, length):
    options = {"num_selected_blocks": 4, "window_size": 64, **options}
    mixer = randomised(NativeSparseAttention(DIM, **options))
    heads, kv_heads = mixer.num_heads, mixer.num_kv_heads
    width, group = DIM // heads, heads // kv_heads
    h = x = torch.randn(length, DIM, dtype=torch.float64)
    if options.get("norm", True):
        h = x / (x.square().mean(1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * mixer.norm.weight
    parts = mixer.qkv(h).split([DIM, kv_heads * width, kv_heads * width], 1)
    q, k, v = (part.unflatten(1, (-1, width)).unbind(1) for part in parts)
    k, v = ([Head(rows, head) for head, rows in enumerate(each)] for each in (k, v))
    gates = mixer.gates(h).sigmoid().unflatten(1, (heads, 3))
    y = torch.zeros(length, heads, width, dtype=torch.float64)
    for i in range(length):
        first = [compressed(mixer, q[head], k[head // group], v[head // group], i) for head in range(heads)]
        for head in range(heads):
            shared = head // group
            own = first[head][1]
            if options.get("heads_share_blocks", True):
                own = torch.stack(
                    [scores for _, scores in first[shared * group : (shared + 1) * group]]
                ).mean(0)
            best = own.topk(min(mixer.num_selected_blocks, len(own))).indices.tolist()
            chosen = [block for block in best if own.softmax(0)[block] > 1e-10]
            arguments = (mixer, q[head], k[shared], v[shared], i)
            branches = first[head][0], selected(*arguments, chosen), near(*arguments)
            y[i, head] = sum(gate * branch for gate, branch in zip(gates[i, head], branches, strict=True))
    torch.testing.assert_close(mixer(x[None])[0], mixer.o_proj(y.flatten(1)))


def test_long_sequences_are_read_in_pieces(monkeypatch):
    """Selection some queries at a time, keys gathered for some at a time: the same numbers."""
    from gatework.layers.sequence import native_sparse_attention
    from gatework.ops import selected_attention

    mixer = randomised(
        NativeSparseAttention(DIM, num_heads=2, block_size=4, num_selected_blocks=2, window_size=5)
    )
    x = torch.randn(2, 70, DIM, dtype=torch.float64, requires_grad=True)
    whole = mixer(x)
    (gradient,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr(native_sparse_attention, "_SCORES", 300)
    monkeypatch.setattr(selected_attention, "_DENSE_KEYS", 0)
    monkeypatch.setattr(selected_attention, "_GATHERED", 1)
    pieces = mixer(x)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces.square().sum(), x)[0], gradient)


def test_the_first_gates_open_the_window():
    mixer = NativeSparseAttention(DIM, num_heads=2)
    expected = torch.tensor([-2.0, -2.0, 2.0, -2.0, -2.0, 2.0])
    assert torch.equal(mixer.gates.bias, expected)
    assert mixer.gates.weight.abs().max() == 0


def test_published_sizes():
    official = {"block_size": 8, "num_selected_blocks": 2, "window_size": 8, "num_heads": 2}
    assert gatework.create_mixer("nsa", 16, **official).published_state_size(128) == 1280
    assert gatework.create_mixer("big_bird", 16, block_size=4).published_state_size(1000) == 2 * 7 * 4 * 16


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1, "rope": True, "num_random": 1}])
def test_big_bird_is_its_pattern(options):
    block, seed = 2, 5
    mixer = randomised(BigBird(DIM, num_heads=2, block_size=block, seed=seed, **options))
    allowed = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for i in range(LENGTH):
        own = i // block
        drawn = {
            int(hashed(seed, torch.tensor(own), torch.tensor(d))) % own
            for d in range(options.get("num_random", 3))
            if own
        }
        for j in range(i + 1):
            allowed[i, j] = i - j <= 3 * block or j < 2 * block or j // block in drawn
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    plain = gatework.create_mixer(
        "attention",
        DIM,
        num_heads=2,
        num_kv_heads=options.get("num_kv_heads"),
        rope=options.get("rope", False),
    ).double()
    plain.load_state_dict(mixer.state_dict())
    plain.mask = mixer.mask
    assert torch.equal(mixer.mask.to_dense(LENGTH, LENGTH), allowed)
    assert not allowed.equal(torch.ones_like(allowed).tril())
    torch.testing.assert_close(mixer(x), plain(x))


def test_big_bird_computes_few_tiles():
    """Long sequences go through the engine whose time follows the tiles that the pattern needs."""
    mask = BigBird(DIM, block_size=64).mask
    assert mask.density(8192, 8192) < 0.08
    q = torch.empty(1, 1, 8192, 8)
    options = Options(mask, None, 1.0, None, None, 0.0, False)
    assert choice.fastest(q, q, q, options) == "blocked"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NativeSparseAttention(DIM, num_heads=8),
            "dim // num_heads must be even to be rotated, got 8 // 8",
        ),
        (
            lambda: NativeSparseAttention(DIM, num_heads=2, num_kv_heads=4),
            "num_kv_heads must divide num_heads=2, got 4",
        ),
        (lambda: NativeSparseAttention(DIM, block_size=0), "block_size must be at least 1, got 0"),
        (
            lambda: NativeSparseAttention(DIM, num_selected_blocks=-1),
            "num_selected_blocks must be at least 0",
        ),
        (lambda: NativeSparseAttention(DIM, window_size=0), "window_size must be at least 1"),
        (lambda: NativeSparseAttention(DIM, num_memory=0), "num_memory must be at least 1"),
        (
            lambda: NativeSparseAttention(DIM, compress_ratio=0.0),
            r"compress_ratio must be positive, got 0\.0",
        ),
        (lambda: NativeSparseAttention(DIM, compat="zoology"), "compat must be one of None, official"),
        (
            lambda: NativeSparseAttention(DIM, compat="official").prefill(torch.randn(1, 4, DIM)),
            "looks ahead",
        ),
        (lambda: NativeSparseAttention(DIM)(torch.randn(1, 4, 6)), "6"),
        (lambda: BigBird(DIM, block_size=0), "block_size must be at least 1, got 0"),
        (lambda: BigBird(DIM, num_random=-1), "num_random must be at least 0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        make()


@pytest.mark.bad_input
def test_states_that_do_not_fit_are_named():
    mixer = NativeSparseAttention(DIM, block_size=4)
    _, state = mixer.prefill(torch.randn(2, 9, DIM))
    x = torch.randn(2, 3, DIM)
    with pytest.raises(ValueError, match="must have one key for each block of 4 of 9 tokens, got 2"):
        mixer.prefill(x, {**state, "compressed_keys": state["compressed_keys"][:, :, :2]})
    with pytest.raises(ValueError, match=r"state\['keys'\] must have shape \(2, 1, any, 8\), got"):
        mixer.prefill(x, {**state, "keys": state["keys"][:1]})
    with pytest.raises(ValueError, match="state must hold"):
        mixer.prefill(x, {"keys": state["keys"]})
    with pytest.raises(ValueError, match=r"rotary_emb.freqs must be"):
        mixer.convert_official({"rotary_emb.freqs": torch.ones(4)})
