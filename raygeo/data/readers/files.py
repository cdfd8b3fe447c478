"""Files by path or URI: where they are, what they hash to, and the records of those that hold JSON lines."""

import codecs
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raygeo.data.validation import SNIPPET_CHARACTERS, Record, SetAside
from raygeo.errors import DataError
from raygeo.paths import local_path

LINE_BYTES = 1 << 28
"""The longest line that is read; longer ones are set aside."""
_SPACE = (" ", "\t", "\r", "\n")
_BINARY = {
    b"\x1f\x8b": "compressed by gzip; let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; let its name end in .zst",
    b"BZh": "compressed by bzip2; let its name end in .bz2",
    b"PK\x03\x04": "an archive or a spreadsheet; unpack it, or save it as CSV in UTF-8",
    b"PAR1": "a Parquet file; take the reader 'parquet' (type: parquet)",
    b"\xff\xfe": "text in UTF-16; write it in UTF-8",
    b"\xfe\xff": "text in UTF-16; write it in UTF-8",
}
"""What files begin with that hold no lines of UTF-8, and what they are."""


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


def open_text(path: str) -> io.BufferedReader:
    """The bytes of a file of text, decompressed as its name says.

    Raises ``DataError`` where there is no such file, or what it begins with is no text in UTF-8.
    """
    filesystem, name = locate(path)
    stream = io.BufferedReader(filesystem.open_input_stream(name))
    head = stream.peek(4)[:4]
    if (found := next((said for begins, said in _BINARY.items() if head.startswith(begins)), None)) is not None:
        stream.close()
        raise DataError(f"{path} is {found}.")
    return stream


def json_lines(path: str | tuple[str, ...]) -> Iterator[Record]:
    """A record for each line that is not blank, those that are not JSON objects as errors; of a file that is one list,
    a record for each entry, which counts as a line.

    Raises ``DataError`` where a file cannot be read.
    """
    for each in as_paths(path):
        try:
            with open_text(each) as stream:
                yield from _records(each, stream)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {each}: {error}") from error


def _records(path: str, stream: io.BufferedReader) -> Iterator[Record]:
    lines = enumerate(_lines(stream), 1)
    first = next(((line, content) for line, content in lines if content.strip()), None)
    if first is None:
        return
    if first[1].removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        rest = stream.read()
        if (entries := _entries(first[1] + rest)) is not None:
            for number, entry in enumerate(entries, 1):
                yield _json_line(path, number, entry)
            return
        lines = enumerate(_lines(io.BytesIO(rest)), first[0] + 1)
    for line, content in chain([first], lines):
        if len(content) > LINE_BYTES:
            text = content[: 4 * SNIPPET_CHARACTERS].decode(errors="backslashreplace")[:SNIPPET_CHARACTERS]
            yield Record(path, line, error=f"a line of more than {LINE_BYTES >> 20} MiB", text=text)
        elif content.strip():
            yield _json_line(path, line, content)


def _entries(content: bytes) -> list[bytes] | None:
    """The entries of one JSON list, each as it is written; None if it is something else."""
    decoder, entries = json.JSONDecoder(), []
    try:
        text = content.decode("utf-8-sig")
        at = _past_space(text, text.index("[") + 1)
        while not text.startswith("]", at):
            _, end = decoder.raw_decode(text, at)
            entries.append(text[at:end].encode())
            at = _past_space(text, end)
            if text.startswith(",", at):
                at = _past_space(text, at + 1)
            elif not text.startswith("]", at):
                return None
    except (ValueError, RecursionError):
        return None
    return entries if not text[at + 1 :].strip() else None


def _past_space(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE:
        at += 1
    return at


def _lines(stream: io.BufferedIOBase) -> Iterator[bytes]:
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
