"""Engines on a GPU: whether each agrees with the definition there, then how fast it is against PyTorch's own.

First every engine of every operator computes outputs and gradients in float32 and bfloat16, and is compared
with the definition in float64 on the CPU (the cases of ``tests/gpu``). Then sides that compute the same take
turns:

- softmax attention, causal, in a window and over documents: FlexAttention against PyTorch's
  ``scaled_dot_product_attention`` with its causal mask or with booleans;
- sigmoid attention: FlashSigmoid against the formula over all pairs;
- linear recurrences and selective scans: flash-linear-attention and mamba-ssm against our chunks;
- neighbourhood attention: NATTEN against ours;
- long convolution: ours against a plain one by PyTorch's transforms.

Before sides are timed they must agree. Each maker's kernels run in a process of their own, so that what
crashes or hangs is a row of the table; what is not installed is one too. ``--device cpu`` is a dry run:
everything is called with small tensors, and no speed is measured. Without a GPU the exit code is 2.

    python benchmarks/gpu.py [--seconds 300] [--engines torch flex triton ...] [--operators attention ...]
                             [--device cpu] [--json [FILE]]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from _engine_cases import CASES, Case, RefusedError, difference, dtypes_of, engines_on, tolerance
from _timing import Timing, take_turns
from gatework import ops
from gatework.masks import Causal, CausalDocument, Mask, SlidingWindow, sample_document_lengths
from gatework.ops.engines import OF_TORCH

#: Whose kernels: the package that must be there, ``None`` where it comes with PyTorch.
MAKERS = {
    "torch": None,
    "flex": None,
    "triton": "triton",
    "fla": "fla",
    "mamba_ssm": "mamba_ssm",
    "natten": "natten",
}
DTYPES = (torch.float32, torch.bfloat16)
OPERATORS = list(dict.fromkeys(case.operator for case in CASES))
#: Seconds of one turn, turns of each side, and the share of the time that is for the definition at most.
TURN, TURNS, AGREEMENT = 0.03, 7, 0.6

Side = Callable[..., Tensor]
#: Sides by name, the first of which is PyTorch's or ours, and the inputs of all.
Comparison = tuple[dict[str, Side], list[Tensor]]


# --- agreement ---


def agreement(maker: str, operators: list[str], device: str, deadline: float) -> Iterator[dict[str, Any]]:
    """Rows of how far every engine of a maker is from the definition, over its cases, by dtype."""
    for operator in operators:
        cases = [case for case in CASES if case.operator == operator]
        if device == "cpu" or maker == "flex":
            cases = [case for case in cases if case.is_core][: 1 if device == "cpu" else None] or cases[:1]
        for engine in engines_on(cases[0], device):
            is_ours = engine in OF_TORCH or engine in ("torch", "blocked-numba", "chunked-numba")
            if maker == ("torch" if is_ours else engine):
                for dtype in DTYPES:
                    if dtype in dtypes_of(cases[0], engine):
                        yield agreement_row(cases, engine, device, dtype, deadline)


def agreement_row(
    cases: list[Case], engine: str, device: str, dtype: torch.dtype, deadline: float
) -> dict[str, Any]:
    """How far an engine is from the definition at most, in how many cases, and what went wrong."""
    row: dict[str, Any] = {"operator": cases[0].operator, "engine": engine, "dtype": str(dtype).split(".")[1]}
    worst, refused, wrong, tried = [0.0, 0.0], [], [], 0
    gradients = not (engine == "flex" and device == "cpu")  # PyTorch has none there
    for case in cases:
        if time.monotonic() > deadline:
            wrong.append("the time was up")
            break
        try:
            named = None if engine == "torch" else engine
            found = difference(case, named, device, dtype, gradients=gradients)
        except RefusedError as reason:
            refused.append(f"{case.name}: {reason}")
            continue
        except Exception as error:
            wrong.append(f"{case.name}: {first_line(error)}")
            continue
        tried += 1
        if any(not far <= most for far, most in zip(found, tolerance(engine, dtype), strict=True)):
            wrong.append(f"{case.name}: outputs off by {found[0]:.1e}, gradients by {found[1]:.1e}")
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
    return row | {
        "cases": tried,
        "outputs": worst[0],
        "gradients": worst[1] if gradients else None,
        "refused": refused,
        "wrong": wrong,
    }


def first_line(error: Exception) -> str:
    """The kind of an error, and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


# --- speed ---


def normal(device: str, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    gen = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=gen).to(device, dtype) for shape in shapes]


def attention_sides(mask: Mask, device: str, length: int) -> Comparison:
    qkv = normal(device, torch.bfloat16, *[(2, 16, length, 64)] * 3)
    if isinstance(mask, Causal):
        base: Side = partial(F.scaled_dot_product_attention, is_causal=True)
    else:
        allowed = mask.to_dense(length, length, device=torch.device(device))
        base = partial(F.scaled_dot_product_attention, attn_mask=allowed)
    return {"SDPA": base, "flex": partial(ops.attention, mask=mask, engine="flex")}, qkv


def sigmoid_sides(mask: Mask, device: str, length: int) -> Comparison:
    qkv = normal(device, torch.bfloat16, *[(2, 16, length, 64)] * 3)
    sigmoid = partial(ops.sigmoid_attention, mask=mask)
    return {"dense": partial(sigmoid, engine="dense"), "triton": partial(sigmoid, engine="triton")}, qkv


def recurrence_sides(operator: str, device: str, length: int) -> Comparison:
    shape = (2, 8, length, 64)
    q, k, v, decay, beta = normal(device, torch.bfloat16, shape, shape, shape, shape[:3], shape[:3])
    inputs = [q, F.normalize(k, dim=-1), v]
    inputs += [beta.sigmoid()] if operator == "delta_rule" else []
    inputs += [F.logsigmoid(decay + 3)]
    return {
        engine: lambda *tensors, e=engine: getattr(ops, operator)(*tensors, engine=e)[0]  # type: ignore[misc]
        for engine in ("chunked", "fla")
    }, inputs


def scan_sides(device: str, length: int) -> Comparison:
    channels, states = (2, length, 1024), (2, length, 16)
    x, dt, b, c = normal(device, torch.bfloat16, channels, channels, states, states)
    rates = -torch.arange(1.0, 17, device=device).repeat(1024, 1)
    return {
        engine: lambda *tensors, e=engine: ops.selective_scan(*tensors, engine=e)[0]  # type: ignore[misc]
        for engine in ("chunked", "mamba_ssm")
    }, [x, 0.1 * dt.sigmoid(), rates, b, c]


def neighborhood_sides(device: str, length: int) -> Comparison:
    side = int(length**0.5)
    qkv = normal(device, torch.bfloat16, *[(2, side, side, 8, 64)] * 3)
    windows = partial(ops.na2d, kernel_size=7)
    return {name: partial(windows, backend=name) for name in ("gatework", "natten")}, qkv


def conv_sides(device: str, length: int) -> Comparison:
    inputs = normal(device, torch.float32, (4, length, 512), (512, length))

    def plain(x: Tensor, kernel: Tensor) -> Tensor:
        """By transforms along the time, differentiated by PyTorch."""
        size = 2 * x.shape[1]
        spectrum = torch.fft.rfft(x, n=size, dim=1) * torch.fft.rfft(kernel, n=size).T
        return torch.fft.irfft(spectrum, n=size, dim=1)[:, : x.shape[1]]

    return {"torch.fft": plain, "causal_conv": ops.causal_conv}, inputs


def comparisons(maker: str, device: str) -> dict[str, Callable[[], Comparison]]:
    """What is timed in the process of a maker's kernels."""
    length = 4096 if device == "cuda" else 64
    documents = sample_document_lengths(length, seed=0)
    masks = {
        "causal": Causal(),
        "window": SlidingWindow(length // 8, 0),
        "documents": CausalDocument(documents),
    }
    return {
        "torch": {"long convolution": partial(conv_sides, device, length)},
        "flex": {
            f"attention, {name}": partial(attention_sides, mask, device, length)
            for name, mask in masks.items()
        },
        "triton": {
            f"sigmoid attention, {name}": partial(sigmoid_sides, mask, device, length)
            for name, mask in masks.items()
        },
        "fla": {
            operator.replace("_", " "): partial(recurrence_sides, operator, device, length)
            for operator in ("gated_linear_attention", "delta_rule")
        },
        "mamba_ssm": {"selective scan": partial(scan_sides, device, length)},
        "natten": {"neighbourhood attention": partial(neighborhood_sides, device, length)},
    }[maker]


def backward_of(side: Side, inputs: list[Tensor]) -> Callable[[], object]:
    """Outputs and gradients of all inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    return lambda: torch.autograd.grad(side(*leaves).float().sum(), leaves)


def speed(maker: str, device: str, deadline: float) -> Iterator[dict[str, Any]]:
    """Rows of milliseconds and ratios, or of what went wrong; in a dry run of what was called alone."""
    for name, make in comparisons(maker, device).items():
        row: dict[str, Any] = {"comparison": name, "engine": maker, "wrong": [], "sides": {}}
        try:
            if time.monotonic() > deadline:
                raise TimeoutError("the time was up")
            sides, inputs = make()
            (base, right), *others = ((side, call(*inputs).detach().float()) for side, call in sides.items())
            for side, found in others:
                far = float((found.float() - right).abs().max() / right.abs().max())
                if not far <= 0.03:
                    raise ArithmeticError(f"{side} and {base} differ by {far:.1e} of the largest number")
            if device == "cuda":
                row |= timed(sides, inputs)
        except Exception as error:
            row["wrong"] = [first_line(error)]
        yield row


def timed(sides: dict[str, Side], inputs: list[Tensor]) -> dict[str, Any]:
    """Milliseconds of each side, forward and with backward, and how much faster it is than the first."""

    def forward(side: Side) -> None:
        with torch.no_grad():
            side(*inputs)

    works: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {name: partial(forward, side) for name, side in sides.items()},
        "train": {name: backward_of(side, inputs) for name, side in sides.items()},
    }
    found: dict[str, dict[str, Any]] = {name: {} for name in sides}
    for work, calls in works.items():
        times = take_turns(calls, TURNS, least=TURN, wait=torch.cuda.synchronize)
        first = next(iter(times.values())).median
        for name, timing in times.items():
            found[name][work] = asdict(timing) | {"ratio": first / timing.median}
    return {"sides": found}


# --- processes ---


def child(maker: str, operators: list[str], device: str, seconds: float) -> None:
    """Print the rows of a maker, one a line, as they are found."""
    start = time.monotonic()
    for row in agreement(maker, operators, device, start + AGREEMENT * seconds):
        print(json.dumps({"agreement": row}), flush=True)
    for row in speed(maker, device, start + seconds):
        print(json.dumps({"speed": row}), flush=True)


def is_installed(maker: str) -> bool:
    package = MAKERS[maker]
    return package is None or find_spec(package) is not None


def rows_of(maker: str, operators: list[str], device: str, seconds: float) -> dict[str, Any]:
    """Let a process find the rows of a maker; whatever becomes of it, return those that it found."""
    found: dict[str, Any] = {"engine": maker, "agreement": [], "speed": [], "wrong": None}
    if not is_installed(maker):
        return found | {"wrong": "not installed"}
    command = [sys.executable, __file__, "--child", maker, "--device", device, "--seconds", str(seconds)]
    command += ["--operators", *operators]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        try:
            # What compiles may outlast the time that it asks for once more.
            code = subprocess.run(
                command, stdout=said, stderr=complained, timeout=2 * seconds + 60
            ).returncode
            wrong = f"its process ended with exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            wrong = "its process took too long, and was ended"
        said.seek(0)
        complained.seek(0)
        for line in said:
            if line.startswith(('{"agreement"', '{"speed"')):
                ((kind, row),) = json.loads(line).items()
                found[kind].append(row)
        if wrong is not None:
            last = [line.strip() for line in complained if line.strip()][-1:]
            found["wrong"] = ": ".join([wrong, *last])
    return found


def show(results: dict[str, Any]) -> None:
    print(f"{results['machine']}, PyTorch {results['torch']}")
    print("\nfarthest from the definition, as a share of its largest number")
    print(f"{'operator':24}{'engine':14}{'dtype':10}{'cases':>5}  outputs  gradients")
    for maker in results["engines"]:
        if maker["wrong"]:
            print(f"{'':24}{maker['engine']:14}{maker['wrong']}")
        for row in maker["agreement"]:
            line = f"{row['operator']:24}{row['engine']:14}{row['dtype']:10}{row['cases']:5}"
            if row["cases"]:
                far = row["gradients"]
                line += f"  {row['outputs']:7.1e}  {'-' if far is None else format(far, '.1e'):>9}"
            elif row["refused"]:
                line += f"  {row['refused'][0]}"
            print(line)
            for wrong in row["wrong"]:
                print(f"{'':24}WRONG {wrong}")
    heading = "median (fastest - slowest) milliseconds, and times as fast as the first side"
    print(f"\n{'dry run: no speed is measured' if results['dry_run'] else heading}")
    for row in (row for maker in results["engines"] for row in maker["speed"]):
        print(f"{row['comparison']}: {row['wrong'][0] if row['wrong'] else 'the sides agree'}")
        for side, works in row["sides"].items():
            shown = []
            for work, found in works.items():
                ratio = found.pop("ratio")
                shown.append(f"{work} {Timing(**found)} {ratio:6.2f}x")
            print(f"  {side:12}" + "   ".join(shown))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300, help="about how long everything may take")
    parser.add_argument(
        "--engines", nargs="+", choices=list(MAKERS), default=list(MAKERS), help="whose kernels"
    )
    parser.add_argument(
        "--operators",
        nargs="+",
        choices=OPERATORS,
        default=OPERATORS,
        help="which to compare with definitions",
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is a dry run")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the numbers as JSON, to a file")
    parser.add_argument("--child", choices=list(MAKERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA GPU that PyTorch sees (--device cpu is a dry run)", file=sys.stderr)
        raise SystemExit(2)
    if options.child:
        child(options.child, options.operators, options.device, options.seconds)
        return
    is_dry = options.device == "cpu"
    results: dict[str, Any] = {
        "machine": "dry run on the CPU" if is_dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "dry_run": is_dry,
        "engines": [],
    }
    end = time.monotonic() + options.seconds
    waiting = [maker for maker in options.engines if is_installed(maker)]
    for maker in options.engines:
        share = max(10.0, (end - time.monotonic()) / max(1, len(waiting)))
        waiting = [other for other in waiting if other != maker]
        results["engines"].append(rows_of(maker, options.operators, options.device, share))
    text = json.dumps(results, indent=2)
    if options.json == "-":
        print(text)
        return
    if options.json:
        Path(options.json).write_text(text + "\n")
    show(results)


if __name__ == "__main__":
    main()
