"""Values of options that are whatever YAML holds, and never more than that.

jsonargparse takes a mapping with ``class_path`` for a class wherever it accepts any value, and imports it:
a recipe could run code. A :class:`PlainValue` stays the numbers, texts, lists and mappings that were written.
"""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse.typing import register_type


class PlainValue:
    """The type of such a value: ``dict[str, PlainValue]`` in place of ``dict[str, Any]``."""


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _is_read(value: Any, kind: type[PlainValue]) -> bool:
    return not isinstance(value, str)


register_type(PlainValue, serializer=lambda value: value, deserializer=_read, type_check=_is_read)
