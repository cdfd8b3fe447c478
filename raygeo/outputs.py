"""Files and folders that a command is asked to write: seen to be possible before there is work, and written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raygeo.errors import ConfigError, RaygeoError
from raygeo.paths import local_path
from raygeo.store.full import is_full


def output_file(out: str | Path) -> Path:
    """Where the file ``out`` is on this machine, once it is seen that it can be written there.

    Raises:
        ConfigError: it is a folder, lies in none that is there, or may not be written.
    """
    file = _place(out)
    with writing(file):
        if file.is_dir():
            raise OSError("it is a folder")
        if not file.parent.is_dir():
            raise OSError(f"there is no folder {file.parent}")
        _check_allowed(file if file.exists() else file.parent)
    return file


def output_folder(out: str | Path) -> Path:
    """Where the new folder ``out`` is on this machine, once it is seen that it can be made there; it may be empty.

    Raises:
        ConfigError: it holds something, or may not be made.
    """
    folder = _place(out)
    with writing(folder):
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} already holds something; name a new folder.")
        above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not above.is_dir():
            raise OSError(f"{above} is a file")
        _check_allowed(above)
    return folder


def write_output(file: Path, text: str) -> None:
    """Write the file that was asked for.

    Raises:
        ConfigError: it cannot be written.
    """
    with writing(file):
        file.write_text(text, encoding="utf-8")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say what could not be written, and why.

    Raises:
        ConfigError: something in ``out`` cannot be written.
    """
    try:
        yield
    except RaygeoError:
        raise
    except Exception as error:
        named = getattr(error, "filename", None)
        elsewhere = isinstance(named, str) and not _contain(Path(named).absolute(), out.absolute())
        if elsewhere or not (isinstance(error, OSError) or is_full(error)):
            raise
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{out} cannot be written: {why}; name another place.") from error


def _contain(one: Path, other: Path) -> bool:
    """Whether one of two places is the other, or lies in it."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def _place(out: str | Path) -> Path:
    try:
        return local_path(out)
    except ValueError as error:
        raise ConfigError(f"{str(out)!r} cannot be written: {error}; name another place.") from error


def _check_allowed(place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise OSError(f"writing to {place} is not allowed")
