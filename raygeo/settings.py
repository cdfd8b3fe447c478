"""The base of every settings model, and the content keys made of settings."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen model that refuses unknown keys; every part of a study is described by one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def content_key(*parts: Any) -> str:
    """Return 16 hex digits of SHA-256 over the canonical JSON of ``parts``.

    Settings models are dumped with all their defaults; floats are written as Python's ``repr``. Two units of work
    share a key exactly when their settings and their inputs' keys are equal.
    """
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
