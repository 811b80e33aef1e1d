"""Shared test settings: two threads at most, poisoned memory, run-time shape checks."""

from __future__ import annotations

import gc
import os
import signal

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read when PyTorch is imported, here and in processes that tests start: threads that wait sleep. Workers of
# pytest-xdist share the cores, and busy waiting would take them from those who work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

pytest_plugins = ["tests.cpu_time"]


def pytest_configure(config: pytest.Config) -> None:
    """Check every public shape annotation while the tests run, before anything of gatework is imported."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # this process only tells the workers of pytest-xdist what to run
    from jaxtyping import install_import_hook

    import tests.typechecker  # the hook looks it up by name, and imports only the package

    tests.typechecker.check_shapes_only_where_there_are_any()
    install_import_hook("gatework", "tests.typechecker.typechecker")
    _start_autograd()
    _hear_interrupts()


def _hear_interrupts() -> None:
    """Let the commands that tests start hear SIGINT, to which background jobs of a script are deaf."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _start_autograd() -> None:
    """Run a backward pass before any test: it starts a thread per device, and no forked child may follow.

    There is no device now, but a test that makes fake tensors makes PyTorch believe in GPUs.
    """
    import torch

    torch.zeros(1, requires_grad=True).sum().backward()


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported: millions of objects that stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def warm_workers():
    """Let workers of studies be forked from a process that has the heavy modules; see tests/warm_python.py.

    For tests of what a study makes. Those of how workers start, die and are replaced do without.
    """
    from gatework.study import executor
    from tests.warm_python import CONTEXT

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "_CONTEXT", CONTEXT)
        yield


@pytest.fixture(autouse=True)
def _settings(request: pytest.FixtureRequest):
    """Poison uninitialised memory; no shape checks where our own error or the compiler must answer."""
    import torch
    from jaxtyping import config

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # without it, uninitialised memory is not filled with NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    off = request.node.get_closest_marker("bad_input") or request.node.get_closest_marker("compile")
    config.update("jaxtyping_disable", bool(off))
    yield
    config.update("jaxtyping_disable", False)
