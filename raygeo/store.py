"""The study's store: content-keyed tables and folders under a local path or a URI, written atomically.

Layout: ``units/<table>/<key>.parquet`` hold the rows of finished units of work, ``units/<table>/<key>.batch.parquet``
those of several that were finished together, which the file itself lists; ``tables/<table>.parquet`` are what the
current study publishes, mostly from them; ``<kind>/<key>/`` are folders of files (students, deltas, tokens). A unit or
folder either exists whole or not at all, so any process may be killed at any time.
"""

import errno
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from raygeo.errors import FullStoreError, StoreError
from raygeo.paths import is_inside, local_path
from raygeo.settings import content_key, split_key
from raygeo.tables import SCHEMAS, to_arrow

log = logging.getLogger(__name__)

_COMPLETE = "_COMPLETE"
_REVISIONS = b"raygeo.revisions"
_UNITS = b"raygeo.units"
_BATCH = ".batch.parquet"
_BATCH_ROWS = 4096
_READERS = 16
AnyPath = str | os.PathLike[str]
T = TypeVar("T")
open_uri = fs.FileSystem.from_uri


# How writers say that a disk is full: the system, then torch.save and numpy, which lose its reason.
_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|unexpected pos \d+ vs \d+|file write failed|requested and \d+ written"
)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk or a quota is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


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


class Store:
    """Open the store at ``location``, a path or any URI ``pyarrow.fs`` understands; ``create`` it if need be.

    Instances pickle as their location, so workers on other machines open the same store.

    Raises:
        StoreError: the location cannot be reached or written, or does not exist and ``create`` is false.
    """

    def __init__(self, location: str | Path, *, create: bool = True):
        text = str(location)
        self._held: dict[str, dict[str, tuple[str, int, int]]] = {}
        self._places: defaultdict[str, dict[str, tuple[str, int, int]]] = defaultdict(dict)
        try:
            self.is_local = urlparse(text).scheme in ("", "file")
            if self.is_local:
                root = local_path(urlparse(text).path if text.startswith("file:") else text).resolve()
                if create:
                    root.mkdir(parents=True, exist_ok=True)
                self.filesystem: fs.FileSystem = fs.LocalFileSystem()
                self.root = str(root)
                self.location = self.root
            else:
                self.filesystem, self.root = open_uri(text)
                if create:
                    self.filesystem.create_dir(self.root, recursive=True)
                self.location = text.rstrip("/")
            found = create or self.filesystem.get_file_info(self.root).type == fs.FileType.Directory
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(
                f"the store {text!r} cannot be opened: {error}. Give a writable path or URI with --store."
            ) from error
        if not found:
            raise StoreError(f"there is no store at {text!r}; run a study first, or give its path.")

    def __reduce__(self):
        return (Store, (self.location,))

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    def path(self, *parts: str) -> str:
        """Path of something in the store, as the store's filesystem knows it.

        Raises:
            StoreError: it would not be in the store.
        """
        for part in parts:
            if not is_inside(part):
                raise StoreError(f"{part!r} leads out of {self.root}; what names it is damaged, or not to be trusted.")
        return "/".join((self.root, *parts))

    @contextmanager
    def writing(self, path: str | None = None) -> Iterator[None]:
        """Say what could not be written, and whether because a disk is full; ``path`` defaults to the whole store.

        Raises:
            FullStoreError: a disk is full.
            StoreError: ``path`` was named and cannot be written for another reason.
        """
        try:
            yield
        except FullStoreError:
            raise
        except Exception as error:
            if is_full(error):
                raise FullStoreError(self._full(path or self.root, error)) from error
            if path is None or not isinstance(error, OSError) or isinstance(error, StoreError):
                raise
            raise StoreError(f"{path} cannot be written: {error}. Check permissions and free space.") from error

    def _full(self, path: str, error: BaseException) -> str:
        space = ""
        if self.is_local:
            disk = shutil.disk_usage(self.root)
            space = f" ({disk.free / 2**20:,.0f} of {disk.total / 2**20:,.0f} MiB are free at {self.root})"
        return (
            f"{path} cannot be written, because a disk is full{space}: {error}. Make room and run the same command "
            "again; what is finished is kept."
        )

    # -- tables ---------------------------------------------------------------------------------------------------

    def units(self, table: str) -> set[str]:
        """Keys of all finished units of ``table``, whichever study made them."""
        selector = fs.FileSelector(self.path("units", table), allow_not_found=True)
        paths = [info.path for info in self.filesystem.get_file_info(selector)]
        batches = [path for path in paths if path.endswith(_BATCH)]
        new = [path for path in batches if path not in self._held]
        self._held |= zip(new, self._several(self._read_batch, new), strict=True)
        self._places[table] = {key: place for path in batches for key, place in self._held[path].items()}
        alone = {Path(path).stem for path in paths if path.endswith(".parquet") and not path.endswith(_BATCH)}
        return alone | set(self._places[table])

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

    def _is_file(self, path: str) -> bool:
        return self.filesystem.get_file_info(path).type == fs.FileType.File

    def unversioned(self) -> int:
        """How many units were made before keys held revisions, and are of no use any more."""
        selector = fs.FileSelector(self.path("units"), allow_not_found=True, recursive=True)
        paths = (Path(info.path) for info in self.filesystem.get_file_info(selector))
        alone = (path for path in paths if path.suffix == ".parquet" and not path.name.endswith(_BATCH))
        return len({path.stem for path in alone if not split_key(path.stem)[1]})

    def finished(self, tables: Iterable[str]) -> set[str]:
        """Keys finished in every one of ``tables``."""
        return set.intersection(*(self.units(table) for table in tables))

    def write_unit(self, key: str, rows: Mapping[str, list[dict[str, Any]] | pa.Table | Iterator[pa.Table]]) -> None:
        """Store the rows of one finished unit, one file a table (empty tables included).

        Of a table that comes in pieces, with the schema of ``SCHEMAS``, only one is held at a time.
        """
        for table, content in rows.items():
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
            self._write_parquet(joined, self.path("units", table, content_key(list(units)) + _BATCH))

    def read_unit(self, table: str, key: str, columns: pa.Schema | None = None) -> pa.Table:
        """Rows of one finished unit of a table with the schema ``columns``, by default that of ``SCHEMAS``."""
        return self.read_units(table, [key], columns)[0]

    def read_units(self, table: str, keys: Iterable[str], columns: pa.Schema | None = None) -> list[pa.Table]:
        """``read_unit`` of each of ``keys``; every file is read once, several at the same time."""
        columns = columns or SCHEMAS[table]
        keys = list(keys)
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
        path = self.path("units", table, f"{key}.parquet")
        held = pa.unify_schemas([wanted, pa.schema([SCHEMAS[table].field(name) for name in where])])
        found = [piece.filter(_equal(piece, where)).select(columns) for piece in self._batches_of(path, held)]
        return pa.concat_tables([wanted.empty_table(), *found])

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
        path = self.path("units", table, f"{key}.parquet")
        if not self._is_file(path):
            yield self.read_unit(table, key)
            return
        yield from self._batches_of(path, SCHEMAS[table])

    def _batches_of(self, path: str, columns: pa.Schema) -> Iterator[pa.Table]:
        """The rows of a file, some at a time."""
        with self._reading(path), pq.ParquetFile(path, filesystem=self.filesystem, pre_buffer=False) as file:
            names = [name for name in columns.names if name in file.schema_arrow.names]
            for batch in file.iter_batches(_BATCH_ROWS, columns=names):
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
            return self._read_parquet(self.path("tables", f"{table}.parquet"), columns)
        if columns is None:
            raise StoreError(f"there is no table {table!r} in {self.root}; it has {', '.join(self.names()) or 'none'}.")
        return columns.empty_table()

    def tables(self) -> dict[str, pa.Table]:
        """All published tables by name, empty ones included."""
        return {name: self.table(name) for name in self.names()}

    def names(self) -> list[str]:
        """Names of the published tables, sorted."""
        selector = fs.FileSelector(self.path("tables"), allow_not_found=True)
        found = (Path(info.path) for info in self.filesystem.get_file_info(selector))
        return sorted(path.stem for path in found if path.suffix == ".parquet")

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
        with self._reading(path):
            return pq.read_schema(path, filesystem=self.filesystem).names

    def revisions(self, table: str) -> dict[str, int] | None:
        """Revisions of the code that made a published table, by workload; None if it does not say, or is damaged."""
        if not self.has_table(table):
            return None
        path = self.path("tables", f"{table}.parquet")
        try:
            kept = (pq.read_schema(path, filesystem=self.filesystem).metadata or {}).get(_REVISIONS)
            return None if kept is None else json.loads(kept)
        except (OSError, ValueError, pa.ArrowException):
            return None

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
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); delete it and run the study again to make it anew."
            ) from error

    def _write_parquet(self, table: pa.Table, path: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._write(path, sink.getvalue())

    def _stream_parquet(self, tables: Iterable[pa.Table], columns: pa.Schema, path: str) -> None:
        folder = self.scratch()
        try:
            with self.writing(path):
                file = folder / "table.parquet"
                with pq.ParquetWriter(file, columns, compression="zstd") as writer:
                    for table in tables:
                        writer.write_table(table.cast(columns))
                self.filesystem.create_dir(os.path.dirname(path), recursive=True)
                if self.is_local:
                    os.replace(file, path)
                else:
                    fs.copy_files(str(file), path, destination_filesystem=self.filesystem)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # -- files ----------------------------------------------------------------------------------------------------

    def write_bytes(self, name: str, data: bytes) -> str:
        """Write a file atomically; returns its path."""
        path = self.path(name)
        self._write(path, data)
        return path

    def read_bytes(self, name: str) -> bytes | None:
        """Content of a file, or None if it does not exist."""
        path = self.path(name)
        if self.filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        with self.filesystem.open_input_stream(path) as stream:
            return stream.read()

    def _write(self, path: str, data: bytes | pa.Buffer) -> None:
        # An object store shows an object only once its upload is complete; a local file needs a rename for that.
        target = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else path
        with self.writing(path):
            self.filesystem.create_dir(os.path.dirname(path), recursive=True)
            try:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(data)
                if self.is_local:
                    os.replace(target, path)
            except BaseException:
                if self.is_local:
                    Path(target).unlink(missing_ok=True)
                raise

    # -- folders --------------------------------------------------------------------------------------------------

    def has_folder(self, kind: str, key: str) -> bool:
        """Whether the folder was written completely."""
        marker = self.path(kind, key, _COMPLETE)
        return self.filesystem.get_file_info(marker).type == fs.FileType.File

    def save_folder(self, kind: str, key: str, source: str | Path) -> None:
        """Move the local folder ``source`` into the store as ``<kind>/<key>``; it appears whole or not at all.

        Where another process has just put it there, that one stays.
        """
        source = Path(source)
        target = self.path(kind, key)
        with self.writing(target):
            if self.is_local:
                (source / _COMPLETE).touch()
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                staged = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
                shutil.move(source, staged)
                while Path(staged).is_dir():
                    try:
                        os.rename(staged, target)
                    except OSError:  # something is there
                        if not Path(target).is_dir():
                            raise
                        shutil.rmtree(staged if self.has_folder(kind, key) else target)
            else:
                self.filesystem.create_dir(target, recursive=True)
                fs.copy_files(str(source), target, destination_filesystem=self.filesystem)
                self._write(f"{target}/{_COMPLETE}", b"")
                shutil.rmtree(source)

    def add_to_folder(self, kind: str, key: str, source: str | Path) -> None:
        """Put the files of the local folder ``source`` into ``<kind>/<key>``, which several processes may fill.

        The folder does not count as written until ``complete_folder``.
        """
        target = self.path(kind, key)
        with self.writing(target):
            self.filesystem.create_dir(target, recursive=True)
            if self.is_local:
                for file in Path(source).iterdir():
                    shutil.move(file, Path(target) / file.name)
            else:
                fs.copy_files(str(source), target, destination_filesystem=self.filesystem)

    def complete_folder(self, kind: str, key: str) -> None:
        """Mark ``<kind>/<key>`` as complete."""
        self._write(self.path(kind, key, _COMPLETE), b"")

    def folders(self, kind: str, prefix: str = "") -> list[str]:
        """Keys of the folders of ``kind`` that begin with ``prefix``, complete or not, sorted."""
        selector = fs.FileSelector(self.path(kind), allow_not_found=True)
        found = (i.base_name for i in self.filesystem.get_file_info(selector) if i.type == fs.FileType.Directory)
        return sorted(name for name in found if name.startswith(prefix))

    def delete_folder(self, kind: str, key: str) -> None:
        """Delete ``<kind>/<key>``; first it ceases to count as complete."""
        path = self.path(kind, key)
        if self.has_folder(kind, key):
            self.filesystem.delete_file(f"{path}/{_COMPLETE}")
        if self.filesystem.get_file_info(path).type == fs.FileType.Directory:
            self.filesystem.delete_dir(path)

    def folder(self, kind: str, key: str) -> str:
        """Local path of a complete folder; a remote one is copied once to this machine's cache.

        Raises:
            StoreError: there is no such folder, or it is incomplete.
        """
        if not self.has_folder(kind, key):
            raise StoreError(f"{self.path(kind, key)} is missing or incomplete; run the study again to make it.")
        if self.is_local:
            return self.path(kind, key)
        cache = Path.home() / ".cache" / "raygeo" / self.root.replace("/", "_") / kind
        if not (cache / key / _COMPLETE).exists():
            cache.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(dir=cache))
            fs.copy_files(self.path(kind, key), str(staged), source_filesystem=self.filesystem)
            if (cache / key).exists():
                shutil.rmtree(staged)
            else:
                staged.rename(cache / key)
        return str(cache / key)

    def stored(self, kind: str, key: str, *inside: str) -> AnyPath:
        """A path to a folder (or a file in it) that any machine may open; a remote folder is fetched on first use."""
        return self.path(kind, key, *inside) if self.is_local else StoredPath(self, kind, key, *inside)

    def free_bytes(self) -> int | None:
        """What is free on the store's disk; None where that cannot be known."""
        return shutil.disk_usage(self.root).free if self.is_local else None

    def folder_bytes(self, kind: str, key: str) -> int:
        """What the files of a folder take, whether it is complete or not."""
        selector = fs.FileSelector(self.path(kind, key), allow_not_found=True, recursive=True)
        return sum(info.size or 0 for info in self.filesystem.get_file_info(selector))

    def scratch(self) -> Path:
        """A new local temporary folder, on the store's own disk when the store is local (so that moves are renames)."""
        parent = None
        if self.is_local:
            parent = Path(self.root) / "scratch"
        with self.writing(None if parent is None else str(parent)):
            if parent is not None:
                parent.mkdir(exist_ok=True)
            return Path(tempfile.mkdtemp(dir=parent))


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


class StoredPath(os.PathLike[str]):
    """A folder of a remote store, or a file in one; where it is used as a path, the folder is first copied there."""

    def __init__(self, store: Store, kind: str, key: str, *inside: str):
        self.store, self.kind, self.key, self.inside = store, kind, key, inside

    def __fspath__(self) -> str:
        return os.path.join(self.store.folder(self.kind, self.key), *self.inside)

    __str__ = __fspath__
