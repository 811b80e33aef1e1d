"""The benchmark as one function: plan it, measure what is missing, write what was found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gatework.bench.attention.measure import measure
from gatework.bench.attention.plan import BenchPlan, Cell, equivalent_command, make_plan
from gatework.bench.attention.progress import Progress
from gatework.bench.attention.result import AttentionBench
from gatework.bench.store import BenchStore
from gatework.files import check_directory
from gatework.masks import Mask


def attention(
    masks: Sequence[str | Mask] | Mapping[str, str | Mask] | None = None,
    *,
    preset: str = "quick",
    lengths: Sequence[int] | None = None,
    head_dims: Sequence[int] | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    batch_size: int | None = None,
    dtypes: Sequence[str] | None = None,
    engines: Sequence[str] | None = None,
    passes: Sequence[str] | None = None,
    threads: int | None = None,
    repeats: int | None = None,
    min_time: float | None = None,
    max_memory: int | None = None,
    memory: bool | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> AttentionBench:
    """Measure attention for every combination of masks, lengths, head sizes, dtypes, passes and engines.

    The same as ``gatework bench attention``. No engine is timed before its numbers, gradients included, agree
    with the definition in float64; then all take turns with PyTorch's attention over all pairs. With an
    ``output`` each finished cell is stored at once, and the same call continues with what is missing.

    Args:
        masks: Names of :data:`~gatework.bench.attention.families.FAMILIES`, texts for
            :func:`~gatework.bench.attention.expressions.parse_mask`, or masks; or these by names of your own.
        preset: Values of what is left out: ``"quick"`` takes a minute or two, ``"published"`` hours.
        lengths: Numbers of tokens, of queries and of keys.
        head_dims: Sizes of a head.
        num_heads: Query heads.
        num_kv_heads: Key and value heads, as many as query heads by default.
        batch_size: Sequences.
        dtypes: Of ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"``.
        engines: Of those of :func:`gatework.ops.attention`; all but the definition by default.
        passes: Of ``"forward"``, ``"backward"`` (alone) and ``"both"`` (one after the other).
        threads: Threads of PyTorch, as many as it has now by default.
        repeats: Turns of each side, at least.
        min_time: Seconds of each side, at least.
        max_memory: Bytes beyond which an engine over all pairs is skipped; half the machine's by default.
        memory: Whether to measure peak memory, which takes a process for each cell.
        output: Directory of the measurements; stored nowhere by default.
        overwrite: Delete what is in ``output``, also if it was made with other options.
        progress: Whether to show progress on standard error.
        command: What the page says made it.

    Raises:
        TypeError: If an option has another type.
        ValueError: If a value is impossible, or ``output`` cannot be used.
    """
    return _run(**locals())


def _run(
    *,
    output: str | Path | None,
    overwrite: bool,
    progress: bool,
    command: str | None,
    **options: Any,
) -> AttentionBench:
    if output is not None:
        check_directory("output", Path(output))
    plan = make_plan(**options)
    command = command or equivalent_command(plan, output)
    if output is None:
        return AttentionBench(plan, _measure_missing(plan, {}, None, progress=progress), command=command)
    store = BenchStore(Path(output), "attention")
    with store.opened(plan.to_json(), overwrite=overwrite):
        records = _measure_missing(plan, store.read_all(), store, progress=progress)
        bench = AttentionBench(plan, records, directory=store.directory, command=command)
        bench.write()
    return bench


def _measure_missing(
    plan: BenchPlan, records: dict[str, Any], store: BenchStore | None, *, progress: bool
) -> dict[str, Any]:
    """Measure what has no record, and store each as soon as it is complete; return all records."""
    missing = [cell for cell in plan.cells() if cell.cell_id not in records]
    bar = Progress(len(plan.cells()), stored=len(plan.cells()) - len(missing), shown=progress)

    def ended(record: dict[str, Any]) -> None:
        if store is not None:
            store.write(record)
        records[record["id"]] = record
        bar.ended(record)

    def started(cell: Cell) -> None:
        bar.running(cell.label)

    try:
        measure(plan, missing, ended=ended, started=started)
    except KeyboardInterrupt:
        if store is not None and progress:
            print(f"{store.directory}: stopped; the same command measures the rest", file=sys.stderr)
        raise
    finally:
        bar.close()
    return records
