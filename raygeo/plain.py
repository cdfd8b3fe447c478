"""What commands print, as JSON."""

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(value: Any) -> str:
    """Plain data as JSON text, null for numbers that JSON does not have."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
