"""The benchmarks run, check before they time, and print numbers a program can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.warm_python import run_python

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "ar_slices": ["--tokens", "40000", "--turns", "1", "--vocab", "500", "--length", "64"],
    "attention": ["--turns", "1", "--shrink", "8", "--cases", "window backward", "documents 0"],
    "head_loss": ["--rows", "600", "--dim", "8", "--vocab", "20", "--turns", "1"],
    "halo_attention": ["--stages", "1", "--batch", "1", "--turns", "1"],
    "mqar_data": ["--examples", "200", "--turns", "2"],
    "based_chunked": ["--length", "256", "--turns", "1"],
    "block_masks": ["--length", "512", "--turns", "1"],
    "block_sparse_attention": ["--length", "256", "--heads", "2", "--densities", "0.5", "--turns", "1"],
    "selective_scan": ["--length", "256", "--longest", "1024", "--turns", "1", "--no-memory"],
    "sigmoid_attention": ["--length", "128", "--turns", "1"],
    "gpu": [*("--device", "cpu", "--engines", "torch", "natten"), *("--operators", "short_conv", "wkv")],
    "gna_simulator": ["--shrink", "8", "--turns", "1"],
    "flash_sigmoid_cubin": ["--head-dims", "32", "--dtypes", "float16", "--options", "causal"],
    "linear_recurrence": ["--length", "256", "--longest", "2048", "--turns", "1"],
    "long_conv": ["--length", "256", "--batch", "2", "--dim", "16", "--turns", "1"],
    "mixers": ["--mixers", "mamba2", "big_bird", "--longest", "2048", "--turns", "1", "--threads", "1"],
    "packing": [
        *(
            "--tokenizer",
            "bytes",
            "--max-bytes",
            "20000",
            "--lengths",
            "64",
            "--rows",
            "2",
            "--tokens",
            "500",
        ),
        *("--mixers", "attention", "--dim", "8", "--layers", "1", "--turns", "1", "--threads", "1"),
    ],
    "ttt": ["--length", "48", "--longest", "2048", "--turns", "1"],
}


def test_every_benchmark_is_here():
    assert {path.stem for path in FOLDER.glob("[!_]*.py")} == set(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_it_runs(name):
    done = run_python([str(FOLDER / f"{name}.py"), *SMALL[name], "--json"], check=True)
    assert json.loads(done.stdout)
