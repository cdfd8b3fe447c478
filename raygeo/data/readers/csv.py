"""Rows of CSV files with a header."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from raygeo.data.readers.base import MappedReader
from raygeo.data.readers.files import LINE_BYTES, as_paths, hash_paths, open_text
from raygeo.data.shapes.messages import are_messages
from raygeo.data.shapes.recognition import LISTED
from raygeo.data.validation import SNIPPET_CHARACTERS, Record
from raygeo.errors import DataError

_LISTED_FIELDS = frozenset(
    {"logprobs", "correct", "reward", "truncated", "sample", "source", "finish_reason", "steps"}
    | {"weight", "top_ids", "top_logprobs", "top_tail"}
)
_DELIMITERS = (";", "\t", "|", ",")
csv.field_size_limit(LINE_BYTES)


class CsvReader(MappedReader):
    """CSV files with a header, possibly compressed; an empty cell is a missing value.

    Cells are texts. JSON lists are read as such where they are messages, and in columns that hold one value a
    completion or go by a name of several (``generations``, ``responses``, ...); where ``shape`` is ``lists``, in that
    of the completions too.
    """

    reader_revision: ClassVar[int] = 3

    type: Literal["csv"] = "csv"
    path: str | tuple[str, ...]
    """Files, as paths or as URIs that pyarrow understands."""
    delimiter: str = Field(",", min_length=1, max_length=1, pattern=r'^[^\r\n"]$')
    """What stands between cells; a tab is written ``"\\t"``."""

    @field_validator("delimiter", mode="before")
    @classmethod
    def _tab(cls, delimiter: Any) -> Any:
        """A tab as a shell hands it on."""
        return "\t" if delimiter == r"\t" else delimiter

    def fingerprint(self) -> str:
        """SHA-256 of the files."""
        return hash_paths(self.path)

    def _raw(self) -> Iterator[Record]:
        fields = {key: name for name, key in self.fields.named()}
        several = _LISTED_FIELDS | ({"completion"} if self.shape == "lists" else set())
        listed = {key for key, name in fields.items() if name in several}
        listed |= {key for key in LISTED if key not in fields or fields[key] != "completion"}
        return csv_rows(self.path, self.delimiter, listed)


def csv_rows(path: str | tuple[str, ...], delimiter: str = ",", listed: Set[str] = frozenset()) -> Iterator[Record]:
    """A record for each row; cells are lists in the columns ``listed``, and where they hold messages.

    Raises ``DataError`` where a file cannot be read.
    """
    for each in as_paths(path):
        try:
            with open_text(each) as stream:
                text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
                rows = csv.DictReader(_lines(text), delimiter=delimiter, strict=True)
                _refuse_other_delimiter(each, rows.fieldnames or ())
                for row in rows:
                    yield _record(each, rows.line_num, row, listed)
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise DataError(f"cannot read {each} as CSV in UTF-8: {error}") from error


def _record(path: str, line: int, row: Mapping[Any, Any], listed: Set[str]) -> Record:
    text = ",".join(str(cell) for cell in row.values())[:SNIPPET_CHARACTERS]
    if None in row or None in row.values():
        return Record(path, line, error="another number of cells than the header has", text=text)
    values = {key: _cell(cell, key in listed) for key, cell in row.items() if cell}
    return Record(path, line, values, text=text)


def _refuse_other_delimiter(path: str, header: Sequence[str]) -> None:
    """Raise ``DataError`` where a header is one cell that other delimiters would divide."""
    if len(header) == 1 and (others := [mark for mark in _DELIMITERS if mark in header[0]]):
        raise DataError(
            f"{path}: its header is one cell, {header[0][:80]!r}; if {others[0]!r} stands between cells, set "
            f"delimiter: {json.dumps(others[0])}."
        )


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a file. Raises ``csv.Error`` at one that is longer than ``LINE_BYTES``."""
    while line := text.readline(LINE_BYTES + 1):
        if len(line) > LINE_BYTES:
            raise csv.Error(f"a line has more than {LINE_BYTES:,} characters")
        yield line


def _cell(cell: str, listed: bool) -> Any:
    """A cell's text, or the list that it holds: one of messages, or any where its column may hold lists."""
    if not cell.lstrip().startswith("["):
        return cell
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return found if listed or are_messages(found) else cell
