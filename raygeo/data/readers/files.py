"""Files by path or URI: where they are, what they hash to, and the records of those that hold JSON lines."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raygeo.data.validation import SNIPPET_CHARACTERS, Record, SetAside
from raygeo.errors import DataError


def as_paths(path: str | tuple[str, ...]) -> tuple[str, ...]:
    """One path or several, as several."""
    return (path,) if isinstance(path, str) else path


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path on it."""
    try:
        if "://" in path:
            filesystem, name = fs.FileSystem.from_uri(path)
        else:
            filesystem, name = fs.LocalFileSystem(), str(Path(path).expanduser().resolve())
        found = filesystem.get_file_info(name).type != fs.FileType.NotFound
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot open {path}: {error}") from error
    if not found:
        raise DataError(f"there is no file {path}")
    return filesystem, name


def hash_paths(path: str | tuple[str, ...]) -> str:
    """SHA-256 of the files at one path or several, in hexadecimal. Raises ``DataError`` where one cannot be read."""
    return hash_files(map(locate, as_paths(path)))


def hash_files(files: Iterable[tuple[fs.FileSystem, str]]) -> str:
    """SHA-256 of the files' contents, one after the other. Raises ``DataError`` where one cannot be read."""
    digest = hashlib.sha256()
    for filesystem, name in files:
        try:
            with filesystem.open_input_stream(name) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"cannot read {name}: {error}") from error
    return digest.hexdigest()


def json_lines(path: str | tuple[str, ...]) -> Iterator[Record]:
    """A record for each line that is not blank, those that are not JSON objects as errors.

    Raises ``DataError`` where a file cannot be read.
    """
    for each in as_paths(path):
        filesystem, name = locate(each)
        try:
            with filesystem.open_input_stream(name) as stream:
                for line, content in enumerate(io.BufferedReader(stream), 1):
                    if content.strip():
                        yield _json_line(each, line, content)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {each}: {error}") from error


def _json_line(origin: str, line: int, content: bytes) -> Record:
    text = content[: 4 * SNIPPET_CHARACTERS].decode("utf-8-sig", errors="backslashreplace")[:SNIPPET_CHARACTERS].strip()
    try:
        values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unambiguous)
    except UnicodeDecodeError:
        return Record(origin, line, error="not UTF-8", text=text)
    except SetAside as reason:
        return Record(origin, line, error=str(reason), text=text)
    except (ValueError, RecursionError):
        return Record(origin, line, error="not JSON", text=text)
    if not isinstance(values, dict):
        return Record(origin, line, error="not a JSON object", text=text)
    return Record(origin, line, values, text=text)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ``SetAside`` where a key has two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if repr(found[key]) != repr(value):
                raise SetAside(f"key {key!r} has two values")
    return found
