"""Imports: light where the command line needs them light, and never reaching for the network."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"lightning", "plotly", "pytorch_lightning", "timm", "torch", "torchmetrics", "transformers"}


@pytest.mark.parametrize(
    "command",
    [("-c", "import gatework"), ("-m", "gatework", "--help"), ("-m", "gatework", "list")],
    ids=["import", "help", "list"],
)
def test_light_commands_import_nothing_heavy(command: tuple[str, ...]):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=120
    )
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    code, complaint = done.returncode, [line for line in lines if not line.startswith("import time:")]
    assert code == 0, "\n".join(complaint)
    assert "gatework" in imported, "the import log was not understood"
    heavy = sorted(name for name in imported if name in HEAVY)
    assert not heavy, f"`python {' '.join(command)}` imports {', '.join(heavy)}: import it where it is used"


IMPORT_EVERYTHING_OFFLINE = """
import importlib, pkgutil, socket

asked = []

def refuse(name):
    def call(*arguments, **options):
        asked.append(f"{name}{arguments[-1:]}")
        raise OSError("the network is unavailable")
    return call

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(name))
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse(name))

import gatework

def modules(package):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name.endswith(".__main__"):  # importing it is running it
            continue
        yield found.name
        if found.ispkg:
            yield from modules(importlib.import_module(found.name))

count = 0
for name in modules(gatework):
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
    count += 1
for question in asked:
    print(f"asked the network: {question}")
print(f"{count} modules")
"""


def test_every_module_imports_without_network():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING_OFFLINE], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *problems, count = done.stdout.splitlines()
    assert not problems, "\n".join(problems)
    assert int(count.split()[0]) > 1
