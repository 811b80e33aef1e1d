"""See to it that ``.venv`` at the root holds this project, with the extras a make target needs.

Usage: ``python3 .ci/environment.py [EXTRA ...]``. The first call makes ``.venv``; later ones do nothing until
the requirements, ``constraints.txt`` or the place of the checkout change. It needs only the standard library,
and is plain enough for Python 3.6, so that an old interpreter gets our message instead of a syntax error.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "gatework-installed.json"
OLDEST = (3, 11)


def main(extras):
    """Install what is missing and say so; return at once if nothing is."""
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"gatework needs Python 3.11 or newer, and {sys.executable} is {found}.\n"
            "Name a newer interpreter: make PYTHON=python3.12 ..."
        )
    project = read_project()
    fingerprint = requirements_fingerprint(project)
    installed = installed_extras(fingerprint) if VENV_PYTHON.exists() else None
    if installed is not None and installed.issuperset(extras):
        return
    STAMP.unlink(missing_ok=True)  # from here on an interruption must not look like success
    if not venv_works():
        print(f"Making a Python environment in {VENV}", flush=True)
        run(sys.executable, "-m", "venv", "--clear", str(VENV))
    named = f" with its {', '.join(extras)} tools" if extras else ""
    print(f"Installing gatework{named} into {VENV} (PyTorch makes the first time long)", flush=True)
    pip_install(*project["build-system"]["requires"])
    # With the build tools in place, nothing is fetched when all requirements are there already.
    pip_install("--no-build-isolation", "--editable", str(ROOT) + (f"[{','.join(extras)}]" if extras else ""))
    STAMP.write_text(
        json.dumps({"fingerprint": fingerprint, "extras": sorted({*extras, *(installed or ())})}),
        encoding="utf-8",
    )


def read_project():
    """Return pyproject.toml as a dictionary."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements_fingerprint(project):
    """Hash what an installation depends on: requirements, tested versions, and where the checkout lies."""
    parts = {
        "project": project["project"],
        "build": project["build-system"],
        "constraints": (ROOT / "constraints.txt").read_text(encoding="utf-8"),
        "root": str(ROOT),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def installed_extras(fingerprint):
    """Return the extras of the last complete installation, or None if it was not this one."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
        return set(stamp["extras"]) if stamp["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def venv_works():
    """Tell whether ``.venv`` holds a new enough interpreter that can run pip."""
    probe = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    try:
        return subprocess.run([str(VENV_PYTHON), "-c", probe], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def pip_install(*arguments):
    """Run ``pip install`` inside ``.venv``, held to the tested versions."""
    pip = (str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--constraint", str(ROOT / "constraints.txt"), *arguments)


def run(*command):
    """Run a command, and stop with its exit code if it fails."""
    code = subprocess.run(command, cwd=str(ROOT)).returncode
    if code:
        sys.exit(f"Failed with exit code {code}: {' '.join(command)}")


if __name__ == "__main__":
    main(sys.argv[1:])
