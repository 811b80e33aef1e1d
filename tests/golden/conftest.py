"""What the tests of adapters share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.maker import Maker


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)
