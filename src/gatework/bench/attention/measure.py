"""Measures the cells of a plan that have no result yet, one problem after the other."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch

from gatework.bench.attention.expressions import parse_mask
from gatework.bench.attention.gate import Gate, Verdict
from gatework.bench.attention.plan import BenchPlan, Cell, Problem
from gatework.bench.attention.problem import Shape, Tensors, make_tensors, needed_bytes, timed
from gatework.bench.environment import environment
from gatework.bench.memory import PeakMeter
from gatework.bench.timing import Timing, take_turns
from gatework.masks import Mask
from gatework.page.quantities import format_bytes

#: What may become of a cell.
STATUSES = ("measured", "wrong", "refused", "skipped", "failed")
#: What every cell is compared with: PyTorch's fused attention over all pairs, without a mask.
BASELINE = "no mask"
_DENSE = "dense"

Record = dict[str, Any]


def measure(
    plan: BenchPlan,
    missing: Sequence[Cell],
    *,
    ended: Callable[[Record], None],
    started: Callable[[Cell], None],
) -> None:
    """Check, time and weigh cells.

    Args:
        plan: The options.
        missing: The cells, in the order of the plan.
        ended: Is given the record of each cell as soon as it is complete.
        started: Is told which cell is being looked at.
    """
    where = "gatework.bench.attention.problem:prepare_memory"
    with _threads(plan.threads), PeakMeter(where, num_threads=plan.threads) as meter:
        made_with = environment()
        for problem, cells in groupby(missing, key=lambda cell: cell.problem):
            group = _Group(plan, problem, meter, started)
            for record in group.records([*cells]):
                ended({**record, "environment": made_with, "measured": time.strftime("%Y-%m-%dT%H:%M:%S")})
            del group
            gc.collect()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Group:
    """The cells of one problem: they share its inputs, its right numbers, and their turns."""

    def __init__(
        self, plan: BenchPlan, problem: Problem, meter: PeakMeter, started: Callable[[Cell], None]
    ) -> None:
        self._plan = plan
        self._problem = problem
        self._meter = meter
        self._started = started
        self._shape = Shape.of(plan)
        self._verdicts: dict[tuple[str, bool], Verdict | Exception] = {}

    def records(self, cells: Sequence[Cell]) -> Iterator[Record]:
        """Measure the cells; one that is refused, wrong or skipped is known before the others are timed."""
        try:
            mask = parse_mask(self._problem.expression, self._problem.length)
            mask.check(
                self._problem.length,
                self._problem.length,
                batch=self._shape.batch_size,
                heads=self._shape.num_heads,
            )
            density = mask.density(self._problem.length, self._problem.length)
        except (TypeError, ValueError) as error:
            yield from (_record(cell, "refused", _line(error)) for cell in cells)
            return
        tensors = make_tensors(self._problem, self._shape)
        gate = Gate(tensors, mask)
        for kind, of_kind in groupby(cells, key=lambda cell: cell.kind):
            right: list[tuple[Cell, Verdict]] = []
            for cell in of_kind:
                self._started(cell)
                record, verdict = self._judge(cell, gate, mask)
                if verdict is None:
                    yield {**record, "density": density}
                else:
                    right.append((cell, verdict))
            if right:
                yield from self._time(kind, right, tensors, mask, density)

    def _judge(self, cell: Cell, gate: Gate, mask: Mask) -> tuple[Record, Verdict | None]:
        """The record of a cell that will not be timed, or the verdict that it may be."""
        needed = needed_bytes(cell.engine, cell.kind, self._problem, self._shape, mask)
        if needed > self._plan.max_memory:
            reason = (
                f"needs about {format_bytes(needed)} for all pairs, "
                f"more than max_memory, {format_bytes(self._plan.max_memory)}"
            )
            return _record(cell, "skipped", reason), None
        verdict = self._verdict(cell, gate)
        if isinstance(verdict, Exception):
            refusal = _refusal(verdict, cell.engine)
            if refusal is not None:
                return _record(cell, "refused", refusal), None
            return _record(cell, "failed", f"{type(verdict).__name__}: {_line(verdict)}"), None
        if verdict.wrong is not None:
            return {**_record(cell, "wrong", verdict.wrong), **_checked(verdict)}, None
        return {}, verdict

    def _verdict(self, cell: Cell, gate: Gate) -> Verdict | Exception:
        gradients = cell.kind != "forward"
        key = (cell.engine, gradients)
        if key not in self._verdicts:
            try:
                self._verdicts[key] = gate.check(cell.engine, gradients=gradients)
            except Exception as error:
                self._verdicts[key] = error.with_traceback(None)
        return self._verdicts[key]

    def _time(
        self,
        kind: str,
        right: Sequence[tuple[Cell, Verdict]],
        tensors: Tensors,
        mask: Mask,
        density: float,
    ) -> Iterator[Record]:
        """Time the cells of one pass, in turns with attention over all pairs; then weigh each."""
        sides = {BASELINE: timed(kind, tensors, None, _DENSE)}
        sides |= {cell.engine: timed(kind, tensors, mask, cell.engine) for cell, _ in right}
        timings = take_turns(sides, repeats=self._plan.repeats, min_time=self._plan.min_time)
        for cell, verdict in right:
            self._started(cell)
            peak, reason = self._peak(cell)
            yield {
                **_record(cell, "measured", None),
                **_checked(verdict),
                "density": density,
                "time": timings[cell.engine]._asdict(),
                "baseline": timings[BASELINE]._asdict(),
                "dense": _optional(timings.get(_DENSE)),
                "peak_bytes": peak,
                "peak_reason": reason,
            }

    def _peak(self, cell: Cell) -> tuple[int | None, str | None]:
        if not self._plan.memory:
            return None, "peak memory was not asked for"
        return self._meter.measure(
            {
                "problem": list(cell.problem),
                "shape": list(self._shape),
                "kind": cell.kind,
                "engine": cell.engine,
            }
        )


def _refusal(error: Exception, engine: str) -> str | None:
    """What an engine said that it cannot do; ``None`` for an error of any other kind."""
    said = _line(error)
    by_name = f"engine {engine!r} "
    if isinstance(error, ValueError) and not said.startswith(by_name):
        return None
    refused = isinstance(error, ValueError | ImportError | NotImplementedError)
    return said.removeprefix(by_name) if refused else None


def _record(cell: Cell, status: str, reason: str | None) -> Record:
    return {"id": cell.cell_id, "cell": cell.to_json(), "status": status, "reason": reason}


def _checked(verdict: Verdict) -> Mapping[str, Any]:
    return {
        "errors": verdict.errors,
        "tolerance": verdict.tolerance,
        "first_call": verdict.first_call,
    }


def _optional(timing: Timing | None) -> dict[str, Any] | None:
    return None if timing is None else timing._asdict()


def _line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
