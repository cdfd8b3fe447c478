"""Files by path or URI: where they are, what they hash to, and the records of those that hold JSON lines."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raygeo.data.validation import SNIPPET_CHARACTERS, Record, SetAside
from raygeo.errors import DataError
from raygeo.paths import local_path

LINE_BYTES = 1 << 28
"""The longest line that is read; longer ones are set aside."""


def as_paths(path: str | tuple[str, ...]) -> tuple[str, ...]:
    """One path or several, as several."""
    return (path,) if isinstance(path, str) else path


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path on it."""
    try:
        if "://" in path:
            filesystem, name = fs.FileSystem.from_uri(path)
        else:
            filesystem, name = fs.LocalFileSystem(), str(local_path(path).resolve())
        found = filesystem.get_file_info(name).type
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"cannot open {path}: {error}") from error
    if found == fs.FileType.NotFound:
        raise DataError(f"there is no file {path}")
    if found == fs.FileType.Unknown:
        raise DataError(f"{path} is a device or a pipe; rollouts are read twice, so write them to a file")
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
                for line, content in enumerate(_lines(io.BufferedReader(stream)), 1):
                    if len(content) > LINE_BYTES:
                        text = content[: 4 * SNIPPET_CHARACTERS].decode(errors="backslashreplace")[:SNIPPET_CHARACTERS]
                        yield Record(each, line, error=f"a line of more than {LINE_BYTES >> 20} MiB", text=text)
                    elif content.strip():
                        yield _json_line(each, line, content)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {each}: {error}") from error


def _lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """The lines of a file; of one longer than ``LINE_BYTES`` no more than a byte beyond that."""
    while content := stream.readline(LINE_BYTES + 1):
        yield content
        while len(content) > LINE_BYTES and not content.endswith(b"\n"):
            content = stream.readline(LINE_BYTES + 1)


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
