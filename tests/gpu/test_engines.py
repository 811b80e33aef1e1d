"""Every engine of every operator on a GPU computes what the definition defines, gradients included."""

from __future__ import annotations

import pytest
import torch

from _engine_cases import ALONE, CASES, Case, RefusedError, difference, dtypes_of, engines_on, tolerance
from tests.gpu.conftest import device_of

pytestmark = pytest.mark.gpu

#: What takes seconds to compile for every kind of call is tried on the core of the cases.
SLOW_TO_COMPILE = {"flex"}
#: By itself an operator chooses an engine that is tried by name too; that it can choose is enough.
CHOSEN_DTYPES = (torch.float32, torch.bfloat16)


def calls(device: str) -> list:
    found = []
    for case in CASES:
        for engine in (None, *engines_on(case, device)):
            if engine in SLOW_TO_COMPILE and not case.is_core:
                continue
            if engine is None and case.engines == (ALONE,):
                continue
            for dtype in dtypes_of(case, engine):
                if engine is None and dtype not in CHOSEN_DTYPES:
                    continue
                name = f"{case.operator}-{case.name}-{engine or 'by itself'}-{str(dtype).split('.')[1]}"
                found.append(pytest.param(case, engine, dtype, id=name))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize(("case", "engine", "dtype"), calls(device_of(metafunc.config)))


def test_outputs_and_gradients(
    case: Case, engine: str | None, dtype: torch.dtype, device: str, record_property
):
    record_property("engine", (case.operator, engine or "(by itself)"))
    named = None if engine == ALONE else engine
    # PyTorch's FlexAttention has no backward pass on a CPU.
    gradients = not (engine == "flex" and device == "cpu")
    try:
        outputs, grads = difference(case, named, device, dtype, gradients=gradients)
    except RefusedError as refused:
        pytest.skip(str(refused))
    most, most_of_grads = tolerance(engine, dtype)
    assert outputs <= most, f"outputs are off by {outputs:.1e} of the largest, gradients by {grads:.1e}"
    assert grads <= most_of_grads, f"gradients are off by {grads:.1e} of the largest"


def test_the_cases_reach_every_engine(device):
    reached = {(case.operator, engine) for case in CASES for engine in engines_on(case, device)}
    assert len({operator for operator, _ in reached}) >= 15
    assert {"flex", "triton", "fla", "mamba_ssm", "natten"} <= {engine for _, engine in reached}
