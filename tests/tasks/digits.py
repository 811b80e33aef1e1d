"""The task on images that the tutorial adds: its very code, so that both stay one."""

from __future__ import annotations

import re
from pathlib import Path

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "add_a_task.md"


def write_plugin(folder: Path) -> str:
    """Write the tutorial's module into a folder, and return its name."""
    (text,) = re.findall(r"^```python file=my_tasks\.py\n(.*?)^```$", TUTORIAL.read_text(), re.M | re.S)
    (folder / "my_tasks.py").write_text(text)
    return "my_tasks"
