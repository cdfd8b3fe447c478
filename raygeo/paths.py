"""Paths and URIs as users write them."""

import os
import re
from pathlib import Path

_UNSPACED = re.compile(r"[^\s'\"]+")
_USER = re.compile(
    r"(\bhttps?://)[^/]*@|(\b(?:(?:https?|hdfs)://(?![^/@:]*:\d{1,5}/)|(?!https?:|hdfs:)\w+://))[^/@:]*:.*@", re.DOTALL
)
"""Of web and HDFS addresses alone, digits before a slash are a port rather than the beginning of a password."""
_SECRET = re.compile(
    r"([?&][\w.-]*(?:token|secret|passw|signature|access_?key|api_?key|credential|\bsig)[\w.-]*=)[^&#\s'\"]+", re.I
)


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path on this machine, with ``~`` and ``~user`` written out.

    Raises:
        ValueError: it can be none: it is empty, holds a NUL, or names the home of somebody who is not known here.
    """
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise ValueError("a path is empty" if not text.strip() else "a path cannot hold a NUL")
    try:
        text.encode()
        return Path(text).expanduser()
    except (RuntimeError, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from error


def is_inside(part: str) -> bool:
    """Whether a part of a path leads below what it is added to, and nowhere else."""
    if part.startswith("/") or "\0" in part or ".." in part.split("/"):
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in part)


def without_credentials(text: str) -> str:
    """A text whose URIs have lost user and password, and the values of query parameters that are secrets."""
    if "@" in text:
        text = _UNSPACED.sub(_without_users, text)
    return _SECRET.sub(r"\1***", text) if "=" in text else text


def _without_users(found: re.Match[str]) -> str:
    """Looks no further than to the last @ of what has no space, so that the time grows with the text's length."""
    before, at, after = found[0].rpartition("@")
    return _USER.sub(r"\1\2", before + at) + after
