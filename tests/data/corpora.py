"""Folders of text to test with."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def write_library(folder: Path) -> Path:
    """Two hundred documents in a few folders."""
    return write(folder, {f"{i % 7}/page{i}.txt": f"page {i}: äé\n" * (1 + i % 5) for i in range(200)})


def documents(tokens: np.ndarray) -> list[str]:
    """The documents that byte tokens spell."""
    pages = tokens.tobytes().decode().split("\0")
    assert pages.pop() == ""  # every document is ended, the last one too
    return pages
