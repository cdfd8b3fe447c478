"""Rows: finished units of work, each there whole or not at all, and the tables that a study publishes of them.

``units/<table>/<key>.parquet`` hold the rows of one unit, ``units/<table>/<key>.batch.parquet`` those of several that
were finished together, which the file itself lists; ``tables/<table>.parquet`` are what the current study publishes.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from raygeo.errors import StoreError
from raygeo.settings import content_key, split_key
from raygeo.store.files import Files
from raygeo.tables import SCHEMAS, to_arrow

log = logging.getLogger(__name__)

BATCH = ".batch.parquet"
_REVISIONS = b"raygeo.revisions"
_UNITS = b"raygeo.units"
_BATCH_ROWS = 4096
_READERS = 16
T = TypeVar("T")


class Tables(Files):
    """Units and tables of a store."""

    def __init__(self, location: str | Path, *, create: bool = True):
        super().__init__(location, create=create)
        self._held: dict[str, dict[str, tuple[str, int, int]]] = {}
        self._places: defaultdict[str, dict[str, tuple[str, int, int]]] = defaultdict(dict)

    def units(self, table: str) -> set[str]:
        """Keys of all finished units of ``table``, whichever study made them."""
        selector = fs.FileSelector(self.path("units", table), allow_not_found=True)
        paths = [info.path for info in self.filesystem.get_file_info(selector)]
        batches = [path for path in paths if path.endswith(BATCH)]
        new = [path for path in batches if path not in self._held]
        self._held |= zip(new, self._several(self._read_batch, new), strict=True)
        self._places[table] = {key: place for path in batches for key, place in self._held[path].items()}
        alone = {Path(path).stem for path in paths if path.endswith(".parquet") and not path.endswith(BATCH)}
        return alone | set(self._places[table])

    def units_in(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The units in files of several, by their paths within the store; none in one that is damaged."""
        return [tuple(found) for found in self._several(self._read_batch, [self.path(name) for name in names])]

    def _read_batch(self, path: str) -> dict[str, tuple[str, int, int]]:
        """The units in a file of ``write_units``: the file, the first row, and how many; none if it is damaged."""
        try:
            held = json.loads(pq.read_schema(path, filesystem=self.filesystem).metadata[_UNITS])
        except (TypeError, KeyError, ValueError) as error:
            log.warning("%s is damaged (%s): what it held is made anew where it is needed", path, error)
            return {}
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}.") from error
        places, start = {}, 0
        for key, rows in held:
            places[key] = (path, start, rows)
            start += rows
        return places

    def _several(self, read: Callable[[str], T], paths: Sequence[str]) -> list[T]:
        """Read files, several at the same time where there are several."""
        if len(paths) < 2:
            return [read(path) for path in paths]
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, paths))

    def unversioned(self) -> int:
        """How many units were made before keys held revisions, and are of no use any more."""
        selector = fs.FileSelector(self.path("units"), allow_not_found=True, recursive=True)
        paths = (Path(info.path) for info in self.filesystem.get_file_info(selector))
        alone = (path for path in paths if path.suffix == ".parquet" and not path.name.endswith(BATCH))
        return len({path.stem for path in alone if not split_key(path.stem)[1]})

    def finished(self, tables: Iterable[str]) -> set[str]:
        """Keys finished in every one of ``tables``."""
        return set.intersection(*(self.units(table) for table in tables))

    def write_unit(self, key: str, rows: Mapping[str, list[dict[str, Any]] | pa.Table | Iterator[pa.Table]]) -> None:
        """Store the rows of one finished unit, one file a table (empty tables included).

        Of a table that comes in pieces, with the schema of ``SCHEMAS``, only one is held at a time.
        """
        for table, content in rows.items():
            self.refer([table], [key])
            path = self.path("units", table, f"{key}.parquet")
            if isinstance(content, Iterator):
                self._stream_parquet(content, SCHEMAS[table], path)
            else:
                arrow = content if isinstance(content, pa.Table) else to_arrow(table, content)
                self._write_parquet(arrow, path)

    def write_units(self, units: Mapping[str, Mapping[str, pa.Table]]) -> None:
        """Store the rows of several finished units, all of the same tables, in one file a table.

        The file says whose its rows are, in order. A unit is finished once the files of all its tables are there.
        """
        if len(units) < 2:
            for key, rows in units.items():
                self.write_unit(key, rows)
            return
        for table in next(iter(units.values())):
            parts = {key: rows[table] for key, rows in units.items()}
            joined = pa.concat_tables(parts.values())
            held = json.dumps([[key, part.num_rows] for key, part in parts.items()]).encode()
            joined = joined.replace_schema_metadata({**(joined.schema.metadata or {}), _UNITS: held})
            self._write_parquet(joined, self.path("units", table, content_key(list(units)) + BATCH))

    def read_unit(self, table: str, key: str, columns: pa.Schema | None = None) -> pa.Table:
        """Rows of one finished unit of a table with the schema ``columns``, by default that of ``SCHEMAS``."""
        return self.read_units(table, [key], columns)[0]

    def read_units(self, table: str, keys: Iterable[str], columns: pa.Schema | None = None) -> list[pa.Table]:
        """``read_unit`` of each of ``keys``; every file is read once, several at the same time."""
        columns = columns or SCHEMAS[table]
        keys = list(keys)
        self.refer([table], keys)
        alone = {key: self.path("units", table, f"{key}.parquet") for key in keys}
        unknown = [key for key in keys if key not in self._places[table]]
        if unknown and (len(keys) > 1 or not self._is_file(alone[keys[0]])):
            self.units(table)  # other processes have stored more
        places = [self._places[table].get(key, (alone[key], 0, None)) for key in keys]
        files = list(dict.fromkeys(path for path, _, _ in places))
        read = dict(zip(files, self._several(partial(self._read_parquet, columns=columns), files), strict=True))
        return [read[path].slice(start, rows) for path, start, rows in places]

    def read_columns(self, schema: pa.Schema, table: str, key: str, columns: Sequence[str]) -> pa.Table:
        """Only these ``columns`` of one finished unit of a table with this schema, in this order."""
        return self.read_unit(table, key, pa.schema([schema.field(name) for name in columns]))

    def read_rows(self, table: str, key: str, columns: Sequence[str], where: Mapping[str, Any]) -> pa.Table:
        """Only these ``columns`` of those rows of one finished unit whose values equal those of ``where``."""
        wanted = pa.schema([SCHEMAS[table].field(name) for name in columns])
        return pa.concat_tables([wanted.empty_table(), *self.row_batches(table, key, columns, where)])

    def row_batches(
        self, table: str, key: str, columns: Sequence[str], where: Mapping[str, Any], rows: int = _BATCH_ROWS
    ) -> Iterator[pa.Table]:
        """What ``read_rows`` gives in order, from at most so many ``rows`` at a time."""
        self.refer([table], [key])
        path = self.path("units", table, f"{key}.parquet")
        held = pa.schema([SCHEMAS[table].field(name) for name in dict.fromkeys([*columns, *where])])
        for piece in self._batches_of(path, held, rows):
            yield piece.filter(_equal(piece, where)).select(columns)

    def publish(
        self,
        table: str,
        keys: Iterable[str],
        columns: pa.Schema | None = None,
        revisions: Mapping[str, int] | None = None,
    ) -> pa.Table:
        """Make ``tables/<table>.parquet`` the concatenation of the units ``keys``, in that order, and return it.

        ``columns`` is its schema, by default that of ``SCHEMAS``; ``revisions`` of the code that made it, by workload,
        are kept with it.
        """
        columns = columns or SCHEMAS[table]
        parts = self.read_units(table, keys, columns)
        return self.publish_rows(table, pa.concat_tables([columns.empty_table(), *parts]).combine_chunks(), revisions)

    def publish_large(self, table: str, keys: Iterable[str], revisions: Mapping[str, int] | None = None) -> None:
        """As ``publish``, but only some rows are held in memory at a time."""
        columns = SCHEMAS[table]
        kept = {**(columns.metadata or {}), _REVISIONS: json.dumps(revisions or {}).encode()}
        pieces = (piece for key in keys for piece in self._pieces(table, key))
        self._stream_parquet(pieces, columns.with_metadata(kept), self.path("tables", f"{table}.parquet"))

    def _pieces(self, table: str, key: str) -> Iterator[pa.Table]:
        """The rows of a unit, some at a time where it has a file of its own."""
        self.refer([table], [key])
        path = self.path("units", table, f"{key}.parquet")
        if not self._is_file(path):
            yield self.read_unit(table, key)
            return
        yield from self._batches_of(path, SCHEMAS[table])

    def _batches_of(self, path: str, columns: pa.Schema, rows: int = _BATCH_ROWS) -> Iterator[pa.Table]:
        """The rows of a file, some at a time."""
        with self._reading(path), pq.ParquetFile(path, filesystem=self.filesystem, pre_buffer=False) as file:
            names = [name for name in columns.names if name in file.schema_arrow.names]
            for batch in file.iter_batches(rows, columns=names):
                yield _as(pa.Table.from_batches([batch]), columns)

    def publish_rows(self, table: str, rows: pa.Table, revisions: Mapping[str, int] | None = None) -> pa.Table:
        """Make ``tables/<table>.parquet`` of rows that follow from units, and return them."""
        kept = {**(rows.schema.metadata or {}), _REVISIONS: json.dumps(revisions or {}).encode()}
        self._write_parquet(rows.replace_schema_metadata(kept), self.path("tables", f"{table}.parquet"))
        return rows

    def table(self, table: str, columns: pa.Schema | None = None) -> pa.Table:
        """The published ``table`` as Arrow (``.to_pandas()`` for pandas).

        One that the study has not made is empty, if its schema is known: that of ``SCHEMAS``, or ``columns``.

        Raises:
            StoreError: there is no such table, or the file is damaged.
        """
        columns = columns or SCHEMAS.get(table)
        if self.has_table(table):
            path = self.path("tables", f"{table}.parquet")
            return self._unchanged(path, lambda: self._read_parquet(path, columns))
        if columns is None:
            raise StoreError(f"there is no table {table!r} in {self.root}; it has {', '.join(self.names()) or 'none'}.")
        return columns.empty_table()

    def first_rows(self, table: str, rows: int) -> tuple[pa.Table, int]:
        """The first ``rows`` of a published table, as the file has them, and how many it has; no more are held.

        Raises:
            StoreError: there is no such table, or the file is damaged.
        """
        path = self.path("tables", f"{table}.parquet")

        def read() -> tuple[pa.Table, int]:
            with self._reading(path), pq.ParquetFile(path, filesystem=self.filesystem, pre_buffer=False) as file:
                batch = next(file.iter_batches(rows), None)
                batches = [] if batch is None else [batch]
                return pa.Table.from_batches(batches, file.schema_arrow), file.metadata.num_rows

        return self._unchanged(path, read)

    def tables(self) -> dict[str, pa.Table]:
        """All published tables by name, empty ones included."""
        return {name: self.table(name) for name in self.names()}

    def names(self) -> list[str]:
        """Names of the published tables, sorted."""
        return sorted(name.removesuffix(".parquet") for name in self.files("tables", ".parquet"))

    def has_table(self, table: str) -> bool:
        """Whether a table is published."""
        return self.filesystem.get_file_info(self.path("tables", f"{table}.parquet")).type == fs.FileType.File

    def columns(self, table: str) -> list[str]:
        """The names of the columns of a published table; none if it is not published.

        Raises:
            StoreError: the file is damaged.
        """
        if not self.has_table(table):
            return []
        path = self.path("tables", f"{table}.parquet")

        def read() -> list[str]:
            with self._reading(path):
                return pq.read_schema(path, filesystem=self.filesystem).names

        return self._unchanged(path, read)

    def revisions(self, table: str) -> dict[str, int] | None:
        """Revisions of the code that made a published table, by workload; None if it does not say, or is damaged."""
        if not self.has_table(table):
            return None
        path = self.path("tables", f"{table}.parquet")

        def read() -> bytes | None:
            with self._reading(path):
                return (pq.read_schema(path, filesystem=self.filesystem).metadata or {}).get(_REVISIONS)

        try:
            kept = self._unchanged(path, read)
            return None if kept is None else json.loads(kept)
        except (StoreError, ValueError):
            return None

    def _unchanged(self, path: str, read: Callable[[], T]) -> T:
        """What ``read`` makes of a file that another process may replace meanwhile; if it did, it is read again.

        An object store or NFS may give parts of two files; a local file that is open stays what it was.
        """
        while True:
            before = self._state(path)
            try:
                found = read()
            except StoreError:
                if self._state(path) == before:
                    raise
                continue
            if self.is_local or self._state(path) == before:
                return found

    def _state(self, path: str) -> tuple[Any, ...]:
        """What tells a file from one that has replaced it; an object store counts whole seconds, but has tags."""
        info = self.filesystem.get_file_info(path)
        tag = None
        if not self.is_local and info.type == fs.FileType.File:
            with suppress(OSError), self.filesystem.open_input_stream(path) as stream:
                tag = stream.metadata().get("ETag")
        return info.type, info.size, info.mtime_ns, tag

    def _read_parquet(self, path: str, columns: pa.Schema | None) -> pa.Table:
        with (
            self._reading(path),
            pq.ParquetFile(path, filesystem=self.filesystem, pre_buffer=not self.is_local) as file,
        ):
            if columns is None:
                return file.read()
            return _as(file.read([name for name in columns.names if name in file.schema_arrow.names]), columns)

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); delete it and run the study again to make it anew."
            ) from error

    def _write_parquet(self, table: pa.Table, path: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        self._write(path, sink.getvalue())

    def _stream_parquet(self, tables: Iterable[pa.Table], columns: pa.Schema, path: str) -> None:
        with self.scratch_folder() as folder, self.writing(path):
            file = folder / "table.parquet"
            with pq.ParquetWriter(file, columns, compression="zstd", write_page_checksum=True) as writer:
                for table in tables:
                    writer.write_table(table.cast(columns))
            self._put(file, path)


def _as(table: pa.Table, columns: pa.Schema) -> pa.Table:
    """The table under the schema ``columns``; what it lacks is null."""
    nulls = {
        field.name: pa.nulls(table.num_rows, field.type) for field in columns if field.name not in table.column_names
    }
    arrays = [nulls[f.name] if f.name in nulls else table[f.name].cast(f.type) for f in columns]
    return pa.Table.from_arrays(arrays, schema=columns)


def _equal(table: pa.Table, values: Mapping[str, Any]) -> pa.ChunkedArray:
    """Which rows have these values."""
    return reduce(pc.and_, (pc.equal(table[name], value) for name, value in values.items()))


def outdated_units(finished: Iterable[str], wanted: Iterable[str]) -> str:
    """How many of the units ``wanted`` were ``finished`` by other revisions of the code, in words; "" if none was."""
    made: defaultdict[str, list[str]] = defaultdict(list)
    for key in finished:
        made_of, revision = split_key(key)
        made[made_of].append(revision)
    found: Counter[tuple[str, str]] = Counter()
    for key in wanted:
        made_of, revision = split_key(key)
        others = [other for other in made.get(made_of, ()) if other != revision]
        if others:
            latest = max(others, key=lambda other: [int(number) for number in other.split(".") if number])
            found[latest, revision] += 1
    sentences = []
    for (old, new), count in sorted(found.items()):
        units, made_by = "unit" if count == 1 else "units", f"revision {old}" if old else "no known revision"
        sentences.append(f"{count} {units} of {made_by} made anew by revision {new}, which changed the numbers")
    return "; ".join(sentences)
