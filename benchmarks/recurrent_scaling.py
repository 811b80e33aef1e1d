"""How the time of a mixer grows with the length: the exponent between 1k and 16k tokens.

An exponent of 1 is linear, 2 quadratic. Attention runs beside the others for comparison. Before timing,
each mixer's parallel form is checked against its token-by-token form on a short sequence.

    python benchmarks/recurrent_scaling.py [--longest 16384] [--turns 5] [--json]
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import numpy as np
import torch

import gatework
from _timing import take_turns

DIM = 64
MIXERS: dict[str, dict[str, Any]] = {
    "based": {"feature_dim": 16},
    "gated_linear_attention": {"num_heads": 2},
    "mamba2": {"state_dim": 32, "head_dim": 32},
    "h3": {"state_dim": 16},
    "hyena": {"max_length": 2**15},
    "attention": {"num_heads": 2},
}
#: Mixers with a state of fixed size that are computed in chunks: their time should grow linearly.
LINEAR = ("based", "gated_linear_attention", "mamba2")


def check_forms_agree(mixer: torch.nn.Module) -> None:
    """Stop if the parallel form and the steps of ``mixer`` differ."""
    x = torch.randn(1, 40, DIM)
    state, steps = mixer.initial_state(1), []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), mixer(x), rtol=1e-3, atol=1e-4)


def measure(lengths: list[int], turns: int) -> dict[str, Any]:
    """Time every mixer at every length, the mixers taking turns."""
    torch.manual_seed(0)
    mixers = {name: gatework.create_mixer(name, DIM, **options).eval() for name, options in MIXERS.items()}
    results: dict[str, Any] = {name: {"ms": {}} for name in mixers}
    with torch.no_grad():
        for mixer in mixers.values():
            check_forms_agree(mixer)
        for length in lengths:
            x = torch.randn(1, length, DIM)
            timings = take_turns({name: partial(mixer, x) for name, mixer in mixers.items()}, turns)
            for name, timing in timings.items():
                results[name]["ms"][length] = timing.median
    for result in results.values():
        logs = np.log(lengths), np.log(list(result["ms"].values()))
        result["exponent"] = float(np.polyfit(*logs, 1)[0])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--longest", type=int, default=16384, help="tokens of the longest sequence")
    parser.add_argument("--turns", type=int, default=5, help="turns of each mixer and length")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(2)
    lengths = [length for length in (1024, 2048, 4096, 8192, 16384, 32768) if length <= options.longest]
    results = measure(lengths, options.turns)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"milliseconds of a forward pass, {DIM} channels, batch 1, two threads (median of {options.turns})")
    print(f"{'mixer':24}" + "".join(f"{length:>10}" for length in lengths) + f"{'exponent':>10}")
    for name, result in results.items():
        times = "".join(f"{ms:10.2f}" for ms in result["ms"].values())
        print(f"{name:24}{times}{result['exponent']:10.2f}" + ("  linear" if name in LINEAR else ""))


if __name__ == "__main__":
    main()
