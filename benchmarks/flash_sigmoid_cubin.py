"""FlashSigmoid compiled for GPUs that need not be there: registers, spilled bytes and shared memory.

Every kernel is compiled as a call on a GPU would compile it, to a binary (cubin) for compute capability 8.0
(A100) and 9.0 (H100). The numbers are those of NVIDIA's assembler, as cuobjdump reads them out of the binary.
Nothing is run, so nothing is timed.

    python benchmarks/flash_sigmoid_cubin.py [--head-dims 32 64 96 128 256] [--dtypes float16 ...]
                                             [--archs 80 90] [--options full causal all] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
import triton
from triton.backends.compiler import GPUTarget

from gatework.masks import Causal
from gatework.ops.sigmoid_attention.flash import kernels, launch
from gatework.ops.sigmoid_attention.flash.blocks import block_lists

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
OPTIONS = ["full", "causal", "all"]
#: Bytes of shared memory that a block of threads may have. What is compiled for 8.0 runs on 8.6 and 8.9 too,
#: which have the least.
SHARED = {80: 99 * 1024, 90: 227 * 1024}
LENGTH = 256


class AbsentGPU:
    """What Triton asks of a driver when it compiles, answered for a GPU that is not here."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        """Its kind, capability, and threads in a warp."""
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """Its number: what is compiled is remembered by it."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        """Where a kernel would wait for its turn."""
        return 0


def calls(head_dim: int, dtype: torch.dtype, options: str) -> list[launch.Call]:
    """The three launches for one shape of heads: over all pairs, under a causal mask, with all options.

    With all options there are two query heads to a head of keys, ALiBi, a bias of pairs and one that is
    trained, and a causal mask.
    """
    heads = 4 if options == "all" else 2
    q, grad = (torch.zeros(1, heads, LENGTH, head_dim, dtype=dtype) for _ in range(2))
    k, v = (torch.zeros(1, 2, LENGTH, head_dim, dtype=dtype) for _ in range(2))
    pair_bias = torch.zeros(1, heads, LENGTH, LENGTH, dtype=dtype) if options == "all" else None
    slopes = torch.zeros(1, heads) if options == "all" else None
    scores = launch.scoring(torch.zeros(1, heads, 1), pair_bias, slopes, 0, head_dim**-0.5)
    size = launch.tiles(head_dim, head_dim, dtype)

    def lists(tile: launch.Tile, along: Literal["queries", "keys"]) -> list[torch.Tensor]:
        cpu = torch.device("cpu")
        return list(block_lists(Causal(), LENGTH, LENGTH, tile.rows, tile.columns, along, cpu))

    lists_of: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
    if options != "full":
        lists_of = lists(size.forward, "queries"), lists(size.backward_keys, "keys")
    _, forward = launch.forward(q, k, v, scores, lists_of[0], size)
    _, backward = launch.backward(q, k, v, grad, scores, *lists_of, size, needs_row_grad=options == "all")
    return [forward, *backward]


def compiled(call: launch.Call, arch: int) -> Any:
    """Compile what a call would run."""
    triton.runtime.driver.set_active(AbsentGPU(arch))
    kernel = getattr(kernels, call.kernel)
    return kernel.warmup(*call.arguments, **call.options, grid=(call.programs,))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and the bytes of them that are spilled to memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(re.findall(rf"\b{name}:(\d+)", said)[-1]) for name in ("REG", "STACK", "LOCAL")}
    # What is spilled lies on the stack of a thread, where these kernels have nothing else.
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def row(call: launch.Call, head_dim: int, dtype: str, options: str, arch: int) -> dict[str, Any]:
    binary = compiled(call, arch)
    return {
        "kernel": call.kernel,
        "head_dim": head_dim,
        "dtype": dtype,
        "options": options,
        "arch": f"sm_{arch}",
        "tile": f"{call.options['ROWS']}x{call.options['COLUMNS']}",
        "warps": call.options["num_warps"],
        "stages": call.options["num_stages"],
        **resources(binary.asm["cubin"]),
        "shared": binary.metadata.shared,
        "fits": binary.metadata.shared <= SHARED[arch],
        "bytes": len(binary.asm["cubin"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head-dims", nargs="+", type=int, default=[32, 64, 96, 128, 256])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--archs", nargs="+", type=int, choices=list(SHARED), default=list(SHARED))
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=OPTIONS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    for head_dim in given.head_dims:
        for dtype in given.dtypes:
            for options in given.options:
                for call in calls(head_dim, DTYPES[dtype], options):
                    for arch in given.archs:
                        rows.append(row(call, head_dim, dtype, options, arch))
                        if not given.json:
                            show(rows[-1], heading=len(rows) == 1)
    if given.json:
        print(json.dumps(rows))


def show(row: dict[str, Any], *, heading: bool) -> None:
    if heading:
        print("kernel            dim dtype     options arch   tile   warps stages registers spilled  shared")
    print(
        f"{row['kernel']:16s} {row['head_dim']:4d} {row['dtype']:9s} {row['options']:7s} {row['arch']}  "
        f"{row['tile']:7s} {row['warps']:4d} {row['stages']:6d} {row['registers']:9d} {row['spilled']:7d} "
        f"{row['shared']:7d}{'' if row['fits'] else '  too much'}"
    )


if __name__ == "__main__":
    main()
