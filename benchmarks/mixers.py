"""Every mixer: against its steps, against attention, with growing length, and while decoding.

Before timing, each mixer's parallel form is checked against its token-by-token form. Then, with 128 channels
and heads of 64 where there are heads (keys of 64 for Mamba-2 and plain linear attention too), batch 1, the
mixers taking turns:

- *milliseconds* of a sequence without gradients, at growing lengths, and the *exponent* of the growth: 1 is
  linear, 2 quadratic;
- *against steps*: how much faster a sequence of 4,096 tokens is than ``step`` for each of its tokens. A few
  steps are timed, after half of the sequence, and their mean is multiplied by the tokens;
- *beats attention from*: the shortest of the lengths up to 8,192 from which on it is faster than a layer of
  softmax attention of equal width;
- *memory*: peak of a forward and a backward pass at 4,096 tokens over that at 2,048, in a process of its own;
- *step*: milliseconds of a decoding step after 1,024 tokens, and after 65,536 over that, where the state has
  a fixed size.

    python benchmarks/mixers.py [--mixers NAME ...] [--longest 16384] [--turns 5] [--no-memory] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gatework
from _timing import settle_allocator, take_turns
from gatework.bench.memory import PeakMeter
from gatework.layers.sequence.mixer import Mixer
from gatework.registry import mixer_options

DIM, HEAD_DIM = 128, 64
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
#: Options beside ``num_heads``, for mixers that need some.
OPTIONS: Mapping[str, dict[str, Any]] = {
    "base_conv": {"kernel_size": 3},
    "mamba2": {"head_dim": HEAD_DIM, "state_dim": 64},
    "linear_attention": {"feature_dim": 64},
}
#: Mixers whose state is a matrix per head, which should beat attention from 4,096 tokens on at the latest.
MATRIX_STATES = (
    "gated_linear_attention",
    "retention",
    "delta_net",
    "gated_delta_net",
    "mamba2",
    "rwkv5",
    "rwkv7",
)
#: Mixers whose state is no recurrence, but the last tokens.
WINDOWS = ("base_conv", "sliding_window")
#: Steps that are timed, for a sequence of any length.
STEPS = 32


def make(name: str, longest: int) -> Mixer:
    """The mixer with heads of 64 channels, for sequences of at most ``longest`` tokens."""
    known, options = mixer_options(name), dict(OPTIONS.get(name, {}))
    if "num_heads" in known:
        options["num_heads"] = DIM // HEAD_DIM
    if "max_length" in known and name != "h3":
        options["max_length"] = longest
    torch.manual_seed(0)
    return gatework.create_mixer(name, DIM, **options).eval()


def inputs(mixer: Mixer, length: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A sequence, and token ids for a mixer that reads them."""
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(1, length, DIM, generator=gen)
    return x, {"tokens": torch.randint(8192, (1, length), generator=gen)} if mixer.reads_tokens else {}


def stepping(mixer: Mixer, past: int) -> Callable[[], object]:
    """A call that takes one step after ``past`` tokens."""
    x, ids = inputs(mixer, past + 1)
    _, state = mixer.prefill(x[:, :past], **{name: tensor[:, :past] for name, tensor in ids.items()})
    return partial(mixer.step, x[:, past], state, **{name: tensor[:, past] for name, tensor in ids.items()})


def has_fixed_state(mixer: Mixer) -> bool:
    """Whether the state after many tokens is as large as after few."""
    return mixer.state_size(1024) == mixer.state_size(2048)


def check_forms_agree(mixer: Mixer) -> None:
    """Stop if the parallel form and the steps of ``mixer`` differ."""
    x, ids = inputs(mixer, 40)
    state, steps = mixer.initial_state(1), []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state, **{name: tensor[:, t] for name, tensor in ids.items()})
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), mixer(x, **ids), rtol=1e-3, atol=1e-3)


def measure_lengths(mixers: Mapping[str, Mixer], lengths: list[int], turns: int) -> dict[str, dict[str, Any]]:
    """Time whole sequences of every length; say how time grows, and where attention is slower."""
    milliseconds: dict[str, dict[int, float]] = {name: {} for name in mixers}
    for length in lengths:
        sides = {}
        for name, mixer in mixers.items():
            x, ids = inputs(mixer, length)
            sides[name] = partial(mixer, x, **ids)
        for name, timing in take_turns(sides, turns, least=0.02).items():
            milliseconds[name][length] = timing.median
    results: dict[str, dict[str, Any]] = {}
    for name, ms in milliseconds.items():
        exponent = float(np.polyfit(np.log(lengths), np.log(list(ms.values())), 1)[0])
        shares = [ms[length] / milliseconds["attention"][length] for length in lengths if length <= 8192]
        slower = max((place for place, share in enumerate(shares) if share >= 1), default=-1)
        beats = lengths[slower + 1] if slower + 1 < len(shares) else None
        results[name] = {"ms": ms, "exponent": exponent, "beats_attention_from": beats}
    return results


def measure_steps(mixer: Mixer, length: int, longest: int, turns: int) -> dict[str, Any]:
    """Compare a sequence with its steps, and steps after few tokens with steps after many."""
    x, ids = inputs(mixer, length)
    step = stepping(mixer, length // 2)

    def steps() -> None:
        for _ in range(STEPS):
            step()

    timings = take_turns({"sequence": partial(mixer, x, **ids), "steps": steps}, turns)
    ratio = timings["steps"].median / STEPS * length / timings["sequence"].median
    result: dict[str, Any] = {"against_steps": ratio, "fixed_state": has_fixed_state(mixer)}
    if result["fixed_state"]:
        sides = {"few": stepping(mixer, 1024), "many": stepping(mixer, longest)}
        decoding = take_turns(sides, 4 * turns + 1, least=0.01)
        result["step_ms"] = decoding["few"].median
        result["step_growth"] = decoding["many"].median / decoding["few"].median
    return result


def training(description: Mapping[str, Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    """What :class:`PeakMeter` measures: a short and a long pass, forward and backward."""
    mixer = make(description["name"], description["longest"]).train()

    def train(length: int) -> None:
        x, ids = inputs(mixer, length)
        mixer(x.requires_grad_(), **ids).sum().backward()
        mixer.zero_grad(set_to_none=True)

    return partial(train, 256), partial(train, description["length"])


def measure_memory(
    names: list[str], lengths: tuple[int, int], longest: int, threads: int
) -> dict[str, dict[str, Any]]:
    """Peak memory of training at two lengths."""
    folder = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    results = {}
    with PeakMeter("mixers:training", num_threads=threads) as meter:
        for name in names:
            peaks = [
                meter.measure({"name": name, "length": length, "longest": longest}) for length in lengths
            ]
            (short, reason), (long, _) = peaks
            growth = long / short if short and long else None
            results[name] = {"train_bytes": [short, long], "memory_growth": growth, "no_memory": reason}
    return results


def goals_missed(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What recurrent mixers should do and did not, in this run."""
    missed = []
    for name, result in results.items():
        if not result["fixed_state"] or name in WINDOWS:
            continue
        for key, bound, better in (
            ("against_steps", 5, 1),
            ("exponent", 1.15, -1),
            ("step_growth", 1.15, -1),
            ("memory_growth", 2.2, -1),
        ):
            value = result.get(key)
            if value is not None and (value - bound) * better < 0:
                missed.append(f"{name}: {key} {value:.2f}, goal {bound}")
        if name in MATRIX_STATES and (result["beats_attention_from"] or 8193) > 4096:
            missed.append(f"{name}: beats attention from {result['beats_attention_from']}, goal 4096")
    return missed


def print_table(results: Mapping[str, Mapping[str, Any]], lengths: list[int]) -> None:
    columns = [*map(str, lengths), "exponent", "vs steps", "beats from", "MB", "memory", "step ms", "step"]
    print(f"{'mixer':24}" + "".join(f"{column:>11}" for column in columns))
    for name, result in results.items():
        peak = (result.get("train_bytes") or [None, None])[1]
        cells = [
            *(f"{ms:.2f}" for ms in result["ms"].values()),
            f"{result['exponent']:.2f}",
            f"{result['against_steps']:.1f}x",
            str(result["beats_attention_from"] or f"> {min(8192, lengths[-1])}"),
            f"{peak / 2**20:.1f}" if peak else "-",
            *(
                f"{result[key]:.2f}{unit}" if result.get(key) else "-"
                for key, unit in (("memory_growth", "x"), ("step_ms", ""), ("step_growth", "x"))
            ),
        ]
        print(f"{name:24}" + "".join(f"{cell:>11}" for cell in cells))
    for line in goals_missed(results):
        print(f"goal missed in this run: {line}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixers", nargs="+", metavar="NAME", help="all by default")
    parser.add_argument("--longest", type=int, default=16384, help="tokens of the longest sequence")
    parser.add_argument("--turns", type=int, default=5, help="turns of each mixer and length")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settle_allocator()
    lengths = [length for length in LENGTHS if length <= options.longest]
    if not lengths:
        parser.error(f"--longest must be at least {LENGTHS[0]}")
    context = 4 * options.longest
    names = list(dict.fromkeys(["attention", *(options.mixers or gatework.list_mixers())]))
    mixers = {name: make(name, context) for name in names}
    with torch.no_grad():
        for mixer in mixers.values():
            check_forms_agree(mixer)
        results = measure_lengths(mixers, lengths, options.turns)
        at = min(4096, lengths[-1])
        for name, mixer in mixers.items():
            results[name] |= measure_steps(mixer, at, context, options.turns)
    if not options.no_memory:
        for name, memory in measure_memory(names, (at // 2, at), context, options.threads).items():
            results[name] |= memory
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(
        f"{DIM} channels, batch 1, {options.threads} threads, milliseconds (median of {options.turns}); "
        f"MB of training at {at} tokens"
    )
    print_table(results, lengths)


if __name__ == "__main__":
    main()
