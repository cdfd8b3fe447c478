"""The base of every settings model, and the content keys made of settings."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen model that refuses unknown keys; every part of a study is described by one.

    ``renamed`` holds keys of earlier versions, which are refused with a word on what they are called now; ``foreign``
    holds names that other libraries have for the same thing, each with the name of a field here or with the rest of a
    sentence about it.
    """

    renamed: ClassVar[dict[str, str]] = {}
    foreign: ClassVar[dict[str, str]] = {}

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def of(cls, settings: "Settings") -> Self:
        """The options of this model alone, taken from settings that have them among others."""
        return cls.model_validate({name: getattr(settings, name) for name in cls.model_fields})


def kinds(base: type[Settings]) -> Iterator[type[Any]]:
    """The subclasses of ``base`` that a study can name by a ``type``."""
    for kind in base.__subclasses__():
        if "type" in kind.model_fields:
            yield kind
        yield from kinds(kind)


def content_key(*parts: Any) -> str:
    """Return 16 hex digits of SHA-256 over the canonical JSON of ``parts``.

    Settings models are dumped with all their defaults; floats are written as Python's ``repr``. Two units of work
    share a key exactly when their settings and their inputs' keys are equal.
    """
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unit_key(revision: int | tuple[int, ...], *parts: Any) -> str:
    """The content key of ``parts``, and the revisions of the code that makes the unit, as in ``<16 digits>-r2`` or
    ``<16 digits>-r2.1``.
    """
    numbers = (revision,) if isinstance(revision, int) else revision
    return f"{content_key(*parts)}-r{'.'.join(map(str, numbers))}"


def split_key(key: str) -> tuple[str, str]:
    """What a unit is made of, and the revisions of the code that made it; "" for one made before these were kept."""
    made_of, _, revision = key.partition("-r")
    return made_of, revision


_USER = re.compile(r"(\bhttps?://)[^/\s'\"]*@|(\b\w+://)[^/\s'\"@:]*:[^/\s'\"]*@")
_SECRET = re.compile(
    r"([?&][\w.-]*(?:token|secret|passw|signature|access_key|api_key|apikey|\bsig)[\w.-]*=)[^&\s'\"]+", re.I
)


def without_credentials(text: str) -> str:
    """A text whose URIs have lost user and password, and the values of query parameters that are secrets."""
    return _SECRET.sub(r"\1***", _USER.sub(r"\1\2", text))
