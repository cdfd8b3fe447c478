"""Paths and URIs as users write them."""

import os
import re
from pathlib import Path

_USER_AND_PASSWORD = re.compile(r"(?<=://)[^\s/@:]*:(?!\d{1,5}/)[^\s'\"<>]*@")
_TOKEN = re.compile(r"(?<=http://)[^\s/@]+@|(?<=https://)[^\s/@]+@")
_QUERY = re.compile(
    r"(?i)([?&][\w-]*(?:secret|token|passw|access_key|accesskey|api_key|apikey|signature|credential)[\w-]*=)[^&\s#'\"]+"
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
    """A text with the users, passwords and keys of all URIs in it written ``***``."""
    if "://" not in text:
        return text
    text = _TOKEN.sub("***@", _USER_AND_PASSWORD.sub("***@", text))
    return _QUERY.sub(r"\1***", text)
