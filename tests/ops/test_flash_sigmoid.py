"""FlashSigmoid: lists of tiles, refusals; in processes of their own Triton's interpreter and compiler."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework import masks
from gatework.masks import BlockSparse, Causal, Document, Mask, Neighborhood, SlidingWindow
from gatework.ops.sigmoid_attention import flash
from gatework.ops.sigmoid_attention.flash import blocks
from gatework.ops.sigmoid_attention.options import SigmoidOptions

ROOT = Path(__file__).parents[2]

needs_triton = pytest.mark.skipif(not flash._has_triton(), reason="there is no Triton for this machine")


# --- lists of tiles ---


def dense(lists: blocks.BlockLists, lengths: tuple[int, int], sizes: tuple[int, int], along: str):
    """The pairs that lists allow, with the checks of what kernels rely on."""
    whole = [-(-length // size) for length, size in zip(lengths, sizes, strict=True)]
    words = lists.masks.to(torch.int64) & 0xFFFFFFFF
    bits = (words[..., None] >> torch.arange(32) & 1).flatten(-2)[..., : sizes[1]].bool()
    full = torch.ones(sizes, dtype=torch.bool)
    shape = lists.pattern_of.shape
    pairs = torch.zeros(*shape, whole[0] * sizes[0], whole[1] * sizes[1], dtype=torch.bool)
    rows = whole[0] if along == "queries" else whole[1]
    for batch in range(shape[0]):
        for head in range(shape[1]):
            for row in range(rows):
                at = int(lists.pattern_of[batch, head]) * rows + row
                start, partial, stop = int(lists.start[at]), int(lists.partial[at]), int(lists.start[at + 1])
                others = lists.block[start:stop].tolist()
                assert start <= partial <= stop
                assert len(set(others)) == stop - start, "no tile is computed twice"
                for entry in range(start, stop):
                    q, kv = (row, int(lists.block[entry]))[:: 1 if along == "queries" else -1]
                    mask = int(lists.mask[entry])
                    assert (mask == -1) == (entry < partial)
                    tile = pairs[batch, head, q * sizes[0] :, kv * sizes[1] :]
                    tile[: sizes[0], : sizes[1]] = full if mask == -1 else bits[mask]
    return pairs[..., : lengths[0], : lengths[1]]


class Speckled(Mask):
    """A mask that knows nothing but its formula."""

    def __call__(self, batch, head, q_idx, kv_idx):
        """Allow about half of the pairs."""
        return (q_idx * 7 + kv_idx * kv_idx * 3) % 5 < 2


def block_sparse(q_length: int, kv_length: int, *shape: int) -> Mask:
    table = torch.rand(*shape, -(-q_length // 9), -(-kv_length // 9)) > 0.6
    return BlockSparse.from_map(table, (9, 9), q_length=q_length, kv_length=kv_length)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([(16, 64), (64, 32), (32, 16)]),
    st.sampled_from(["queries", "keys"]),
    st.integers(0, 6),
)
def test_lists_are_the_mask(q_length, kv_length, sizes, along, kind):
    mask = (
        Causal().with_query_offset(kv_length - q_length),
        SlidingWindow(20, 3),
        ~SlidingWindow(5, 40),
        Causal() | masks.PrefixLM(30),
        block_sparse(q_length, kv_length, 2, 3),
        block_sparse(q_length, kv_length, 3),
        Speckled(),
    )[kind]
    lists = blocks.make_lists(mask, q_length, kv_length, *sizes, along)
    expected = mask.to_dense(q_length, kv_length).expand(*lists.pattern_of.shape, q_length, kv_length)
    assert torch.equal(dense(lists, (q_length, kv_length), sizes, along), expected)


@pytest.mark.parametrize("mask", [Document((100, 1, 95)), Neighborhood((14, 14), 5, stride=2)], ids=repr)
@pytest.mark.parametrize("along", ["queries", "keys"])
def test_lists_of_masks_of_one_length(mask, along):
    lists = blocks.make_lists(mask, 196, 196, 32, 64, along)
    assert torch.equal(dense(lists, (196, 196), (32, 64), along)[0, 0], mask.to_dense(196, 196))


@pytest.mark.parametrize("lengths", [(0, 0), (0, 9), (9, 0)])
@pytest.mark.parametrize("along", ["queries", "keys"])
def test_lists_of_nothing(lengths, along):
    lists = blocks.make_lists(Causal(), *lengths, 16, 16, along)
    assert not lists.block.numel()
    assert not lists.start.any()


def test_equal_tiles_share_a_mask_and_empty_ones_are_left_out():
    lists = blocks.make_lists(Causal(), 1024, 1024, 64, 64, "queries")
    assert len(lists.masks) == 1, "all tiles on the diagonal are alike"
    assert len(lists.block) == 16 * 17 // 2
    assert len(lists.mask) - int((lists.mask == -1).sum()) == 16
    per_head = blocks.make_lists(BlockSparse.from_map(torch.eye(4).bool().expand(3, 4, 4), 64), 256, 256,
                                 64, 64, "keys")  # fmt: skip
    assert per_head.pattern_of.unique().numel() == 1, "heads with one pattern share its lists"


def test_lists_are_remembered_and_outlive_inference():
    mask = SlidingWindow(3, 4)
    arguments = (mask, 50, 60, 16, 16, "keys", torch.device("cpu"))
    with torch.inference_mode():
        first = blocks.block_lists(*arguments)
    assert blocks.block_lists(*arguments) is first
    assert not any(part.is_inference() for part in first)


@pytest.mark.bad_input
def test_lists_of_a_mask_for_other_lengths():
    with pytest.raises(ValueError, match="q_length must be 30"):
        blocks.make_lists(Document((10, 20)), 31, 30, 16, 16, "queries")


# --- refusals ---


def asked(**given) -> SigmoidOptions:
    defaults = {"mask": None, "row_bias": torch.zeros(1, 1, 1), "pair_bias": None, "slopes": None}
    return SigmoidOptions(**{**defaults, "query_offset": 0, "scale": 1.0, "dropout_p": 0.0, **given})


def refused(options: SigmoidOptions, dtype=torch.float32, dim: int = 8, value_dim: int = 8) -> str | None:
    q, k = (torch.zeros(1, 1, 4, dim, dtype=dtype) for _ in range(2))
    return flash.refusal(q, k, torch.zeros(1, 1, 4, value_dim, dtype=dtype), options)


@pytest.mark.parametrize(
    ("options", "tensors", "reason"),
    [
        (
            {"mask": torch.ones(4, 4, dtype=torch.bool)},
            {},
            r"a gatework.masks.Mask, got a tensor of shape \(4",
        ),
        ({"dropout_p": 0.25}, {}, "no dropout, got dropout_p=0.25"),
        ({"pair_bias": torch.zeros(1, 1, 4, 4, requires_grad=True)}, {}, "no gradient of a bias of pairs"),
        ({"slopes": torch.zeros(1, 1, requires_grad=True)}, {}, "no gradient of alibi_slopes"),
        ({}, {"dtype": torch.float64}, "float32, bfloat16 and float16, got torch.float64"),
        ({}, {"dim": 257}, "1 to 256 channels, got head_dim=257"),
        ({}, {"value_dim": 0}, "1 to 256 channels, got value_dim=0"),
    ],
)
def test_what_it_cannot_do_it_says(options, tensors, reason):
    said = refused(asked(**options), **tensors)
    assert said is not None
    assert re.search(reason, said), said


@needs_triton
def test_it_computes_on_the_cpu_only_in_the_interpreter():
    assert "computes on CUDA" in (refused(asked()) or "")


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import gatework.ops
from gatework.ops.sigmoid_attention import flash
assert "gatework.ops.sigmoid_attention.flash.kernels" not in sys.modules, "imported unasked"
from gatework.ops.sigmoid_attention.flash import kernels
from gatework.ops.sigmoid_attention.options import SigmoidOptions
options = SigmoidOptions(None, torch.zeros(1, 1, 1), None, None, 0, 1.0, 0.0)
print(flash.refusal(*[torch.zeros(1, 1, 2, 4)] * 3, options))
"""


def test_everything_imports_without_triton():
    said = run([sys.executable, "-c", WITHOUT_TRITON])
    assert said.strip() == "needs Triton, which is not installed here"


# --- processes of their own ---


def run(command: list[str], **environment: str) -> str:
    """Run a command, and show what it said if it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def interpreted(marked: str) -> None:
    cases = str(Path(__file__).with_name("flash_sigmoid_cases.py"))
    options = ["-q", "-m", marked, "-p", "no:cacheprovider", "-p", "no:xdist"]
    said = run([sys.executable, "-m", "pytest", cases, *options], TRITON_INTERPRET="1")
    assert " passed" in said


@needs_triton
def test_interpreted():
    interpreted("not slow")


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_interpreted_at_length():
    interpreted("slow")


def compiled(folder: Path, *options: str) -> list[dict]:
    script = str(ROOT / "benchmarks" / "flash_sigmoid_cubin.py")
    # A cache of its own: what is compiled is what the sources say now.
    return json.loads(run([sys.executable, script, *options, "--json"], TRITON_CACHE_DIR=str(folder)))


def check_compiled(rows: list[dict]) -> None:
    for row in rows:
        assert row["bytes"] > 1000, row
        assert row["fits"], row
        # All options at once, a few of which fit no register, are rare.
        assert row["spilled"] <= (32 if row["options"] == "all" else 0), row
    assert {row["kernel"] for row in rows} == {"forward", "backward_queries", "backward_keys"}
    assert {row["arch"] for row in rows} == {"sm_80", "sm_90"}


@needs_triton
def test_compiles_without_spilling(tmp_path):
    rows = compiled(tmp_path, "--head-dims", "64", "--dtypes", "float16", "--options", "full", "causal")
    check_compiled(rows)


@needs_triton
@pytest.mark.slow
def test_every_size_compiles(tmp_path):
    rows = compiled(tmp_path, "--head-dims", "32", "64", "96", "128", "--dtypes", "float16", "bfloat16")
    check_compiled(rows)
    assert len(rows) == 3 * 4 * 2 * 3 * 2
