"""Files by path or URI: where they are, what they hash to, and the records of those that hold JSON lines."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raygeo.data.validation import SNIPPET_CHARACTERS, Record, SetAside
from raygeo.errors import DataError
from raygeo.paths import local_path

LINE_BYTES = 1 << 28
"""The longest line that is read; longer ones are set aside."""
_CHUNK = 1 << 16
_SPACE = (" ", "\t", "\r", "\n")
_LIST = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*[{\]]")
"""How a file begins that is one list of objects, or an empty one."""
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


def hash_lines(path: str | tuple[str, ...]) -> str:
    """As ``hash_paths``, but of files that ``json_lines`` reads: another one where some are lists, of which there was
    no record before lists were read.
    """
    lists = [each for each in as_paths(path) if _is_list(each)]
    found = hash_paths(path)
    return hashlib.sha256(f"{found} with lists".encode()).hexdigest() if lists else found


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
    stream = io.BufferedReader(filesystem.open_input_stream(name), _CHUNK)
    try:
        head = stream.peek(4)
        if (found := next((said for begins, said in _BINARY.items() if head.startswith(begins)), None)) is not None:
            raise DataError(f"{path} is {found}.")
    except BaseException:
        stream.close()
        raise
    return stream


def json_lines(path: str | tuple[str, ...]) -> Iterator[Record]:
    """A record for each line that is not blank, those that are not JSON objects as errors; of a file that is one list
    of objects, a record for each entry, which counts as a line.

    Raises ``DataError`` where a file cannot be read.
    """
    for each in as_paths(path):
        try:
            with open_text(each) as stream:
                entries = _entries(each, stream) if _LIST.match(stream.peek()) else enumerate(_lines(stream), 1)
                for line, content in entries:
                    if len(content) > LINE_BYTES:
                        text = content[: 4 * SNIPPET_CHARACTERS].decode(errors="backslashreplace")[:SNIPPET_CHARACTERS]
                        yield Record(each, line, error=f"a line of more than {LINE_BYTES >> 20} MiB", text=text)
                    elif content.strip():
                        yield _json_line(each, line, content)
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise DataError(f"cannot read {each}: {error}") from error


def _is_list(path: str) -> bool:
    try:
        with open_text(path) as stream:
            return _LIST.match(stream.peek()) is not None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _entries(path: str, stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """The entries of one JSON list, from 1, each as it is written; little more than one of them is held.

    Raises ``DataError`` where one cannot be read: nothing tells where the next one begins.
    """
    decoder, text = json.JSONDecoder(), io.TextIOWrapper(stream, encoding="utf-8-sig")
    held, at, number, mark = "", 0, 0, "["
    while True:
        at = _past_space(held, at)
        entry = _past_space(held, at + 1) if held.startswith(mark, at) else None
        end = None if entry is None else _end_of_entry(decoder, held, entry)
        if entry is not None and end is not None:
            number, mark, at = number + 1, ",", end
            yield number, held[entry:end].encode(errors="surrogatepass")
            continue
        closing = at if number else entry
        if closing is not None and held.startswith("]", closing) and not held[closing + 1 :].strip():
            if not any(more.strip() for more in iter(lambda: text.read(_CHUNK), "")):
                return
        elif len(held) - at <= LINE_BYTES and (more := text.read(max(_CHUNK, len(held) - at))):
            held, at = held[at:] + more, 0
            continue
        raise DataError(
            f"cannot read {path}: it begins as a JSON list, and what follows entry {number} is no other entry, or the "
            f"file does not end with the list: {held[at : at + 80]!r}."
        )


def _end_of_entry(decoder: json.JSONDecoder, text: str, start: int) -> int | None:
    """Where the JSON value ends that begins at ``start``; None where it is not whole, or none."""
    try:
        end = decoder.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None
    return end if end < len(text) else None


def _past_space(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE:
        at += 1
    return at


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
