"""Parquet files whose columns the user names, each read by its own schema."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raygeo.data.readers.arrow import rows_of
from raygeo.data.readers.base import MappedReader
from raygeo.data.readers.files import as_paths, hash_files, locate
from raygeo.data.validation import Record
from raygeo.errors import DataError

_BATCH_ROWS = 1024


class ParquetReader(MappedReader):
    """Parquet files.

    Each is read by its own schema, so values are as written whatever other files hold; a column that a file lacks is
    absent in its rows alone.
    """

    type: Literal["parquet"] = "parquet"
    path: str | tuple[str, ...]
    """Files or folders, as paths or as URIs that pyarrow understands. Of a folder, its ``*.parquet`` files are read, in
    the order of their names, but none whose name, or folder's name, begins with ``_`` or ``.``."""

    def fingerprint(self) -> str:
        """SHA-256 of the files."""
        return hash_files(file for path in as_paths(self.path) for file in _parquet_files(path))

    def _raw(self) -> Iterator[Record]:
        files = [_ParquetFile.open(*file) for path in as_paths(self.path) for file in _parquet_files(path)]
        for field, key in self.fields.named():
            _refuse_conflict(field, key, files)
        for file in files:
            yield from file.records(self.wants)


@dataclass(frozen=True)
class _ParquetFile:
    """A Parquet file whose schema is known."""

    filesystem: fs.FileSystem
    path: str
    schema: pa.Schema

    @classmethod
    def open(cls, filesystem: fs.FileSystem, path: str) -> "_ParquetFile":
        """Read the schema. Raises ``DataError`` when the file is not Parquet, or two of its columns share a name."""
        try:
            schema = pq.read_schema(path, filesystem=filesystem)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {path} as Parquet: {error}") from error
        twice = sorted(name for name, number in Counter(schema.names).items() if number > 1)
        if twice:
            raise DataError(f"{path} has more than one column {twice[0]!r}; rename one of them")
        return cls(filesystem, path, schema)

    def records(self, wanted: Callable[[str], bool]) -> Iterator[Record]:
        """Yield the rows with those columns that are ``wanted``."""
        columns = [name for name in self.schema.names if wanted(name)]
        line = 0
        try:
            with self.filesystem.open_input_file(self.path) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(_BATCH_ROWS, columns=columns):
                    for values in rows_of(batch):
                        line += 1
                        yield Record(self.path, line, **values)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {self.path} as Parquet: {error}") from error

    def type_of(self, key: str) -> pa.DataType:
        """The type of the values at a dotted ``key``; null when they are absent."""
        if key in self.schema.names:
            return self.schema.field(key).type
        first, *parts = key.split(".")
        found = self.schema.field(first).type if first in self.schema.names else pa.null()
        for part in parts:
            if pa.types.is_struct(found) and found.get_field_index(part) >= 0:
                found = found.field(part).type
            else:
                found = found.value_type if _is_list(found) and part.isdecimal() else pa.null()
        return found


def _refuse_conflict(field: str, key: str, files: Sequence[_ParquetFile]) -> None:
    """Raise ``DataError`` where files hold values of different kinds for one field, such as text and numbers."""
    seen: dict[pa.DataType, str] = {}
    for file in files:
        found = file.type_of(key)
        for other, path in seen.items():
            if not _alike(other, found, field):
                raise DataError(
                    f"column {key!r} (the field {field}) is {other} in {path} and {found} in {file.path}; write it "
                    "with one type in all files, or read the files that differ as another source with its own fields"
                )
        seen.setdefault(found, file.path)


def _alike(a: pa.DataType, b: pa.DataType, field: str) -> bool:
    """Whether values of two types are of one kind; where text is meant, a number may stand for that of its digits."""
    if pa.types.is_null(a) or pa.types.is_null(b):
        return True
    if _is_list(a) and _is_list(b):
        return _alike(a.value_type, b.value_type, field)
    kinds = {_kind(a), _kind(b)}
    return len(kinds) == 1 or (field in ("gold", "prompt_id") and kinds == {"text", "number"})


def _kind(found: pa.DataType) -> str:
    types = pa.types
    if types.is_dictionary(found):
        return _kind(found.value_type)
    if types.is_boolean(found):
        return "bool"
    if types.is_integer(found) or types.is_floating(found) or types.is_decimal(found):
        return "number"
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
        return "text"
    return "struct" if types.is_struct(found) else "list" if _is_list(found) else str(found)


def _is_list(found: pa.DataType) -> bool:
    types = pa.types
    return any(
        holds(found)
        for holds in (
            types.is_list,
            types.is_large_list,
            types.is_fixed_size_list,
            types.is_list_view,
            types.is_large_list_view,
        )
    )


def _parquet_files(path: str) -> list[tuple[fs.FileSystem, str]]:
    """The file at ``path``, whatever its name, or the Parquet files of the folder there, sorted."""
    filesystem, name = locate(path)
    if filesystem.get_file_info(name).is_file:
        return [(filesystem, name)]
    found = filesystem.get_file_info(fs.FileSelector(name, recursive=True))
    inside = {info.path: PurePosixPath(info.path).relative_to(name).parts for info in found if info.is_file}
    files = sorted(
        (parts, file)
        for file, parts in inside.items()
        if file.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in parts)
    )
    if not files:
        raise DataError(f"there is no *.parquet file in the folder {path}; name a file, or rename the files")
    return [(filesystem, file) for _, file in files]
