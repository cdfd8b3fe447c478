"""Content-keyed tables and folders under a local path or a URI, written atomically.

Layout: ``units/<table>/<key>.parquet`` hold the rows of finished units of work, ``units/<table>/<key>.batch.parquet``
those of several that were finished together, which the file itself lists; ``tables/<table>.parquet`` are what the
current study publishes, mostly from them; ``<kind>/<key>/`` are folders of files (students, deltas, tokens). A unit or
folder either exists whole or not at all, so any process may be killed at any time.

In a local store everything is made in ``scratch/`` and moved to its place when it is whole. An object store shows an
object when its upload is complete, and has no moves: the files of a folder are put into a subfolder of their own, which
``_COMPLETE``, written last, names.
"""

import json
import logging
import os
import shutil
import tempfile
import uuid
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

from raygeo.errors import FullStoreError, StoreError
from raygeo.settings import content_key, split_key
from raygeo.store import location as places
from raygeo.store.full import is_full
from raygeo.store.ledger import Ledger
from raygeo.store.manifest import COMPLETE, Manifest, manifest_of
from raygeo.store.process import machine
from raygeo.tables import SCHEMAS, to_arrow

log = logging.getLogger(__name__)

_REVISIONS = b"raygeo.revisions"
_UNITS = b"raygeo.units"
BATCH = ".batch.parquet"
_BATCH_ROWS = 4096
_READERS = 16
AnyPath = str | os.PathLike[str]
T = TypeVar("T")
SCRATCH = "scratch"


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
        self.ledger: Ledger | None = None
        """Where what is asked of this instance is noted, if it is."""
        self.is_local = not places.is_uri(text)
        shown = places.without_secrets(text)
        try:
            if self.is_local:
                root = places.local_root(text)
                if create:
                    root.mkdir(parents=True, exist_ok=True)
                self.filesystem: fs.FileSystem = fs.LocalFileSystem()
                self.root = str(root)
                self.location = self.root
            else:
                self.filesystem, self.root = places.open_uri(text)
                if create:
                    self.filesystem.create_dir(self.root, recursive=True)
                self.location = places.extended(text, "")
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(
                f"the store {shown!r} cannot be opened: {error}. Give a writable path or URI with --store."
            ) from error
        if not create and self.filesystem.get_file_info(self.root).type != fs.FileType.Directory:
            raise StoreError(f"there is no store at {shown!r}; run a study first, or give its path.")

    def __reduce__(self):
        return (Store, (self.location,))

    def __repr__(self) -> str:
        return f"Store({self.shown!r})"

    @property
    def shown(self) -> str:
        """The location as it may be shown, without a password."""
        return places.without_secrets(self.location)

    def path(self, *parts: str) -> str:
        """Path of something in the store, as the store's filesystem knows it."""
        return "/".join((self.root, *parts))

    def uri(self, *parts: str) -> str:
        """Path or URI of something in the store, as any process may open it."""
        return places.extended(self.location, "".join(f"/{part}" for part in parts))

    @contextmanager
    def noting(self, study: str) -> Iterator[Ledger]:
        """Note what is asked of this instance as what ``study`` needs; it is written down at the end.

        Raises:
            StoreError: the store cannot be written.
        """
        self.ledger = Ledger(study)
        try:
            self.write_bytes(self.ledger.file, self.ledger.dumped())
            yield self.ledger
            self.write_bytes(self.ledger.file, self.ledger.dumped())
        finally:
            self.ledger = None

    def refer(self, tables: Iterable[str], keys: Iterable[str]) -> None:
        """Note that the study needs these units, whoever makes them."""
        if self.ledger is not None:
            self.ledger.note(tables, keys)

    def _note_folder(self, kind: str, key: str) -> None:
        if self.ledger is not None:
            self.ledger.folders[kind].add(key)

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

    def _is_file(self, path: str) -> bool:
        return self.filesystem.get_file_info(path).type == fs.FileType.File

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
        self.refer([table], [key])
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
        self.refer([table], [key])
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
            path = self.path("tables", f"{table}.parquet")
            return self._unchanged(path, lambda: self._read_parquet(path, columns))
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
        except StoreError:
            return None
        return None if kept is None else json.loads(kept)

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
        info = self.filesystem.get_file_info(path)
        return info.type, info.size, info.mtime_ns

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
        except (OSError, pa.ArrowInvalid) as error:
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
        try:
            with self.filesystem.open_input_stream(path) as stream:
                return stream.read()
        except FileNotFoundError:  # it has just been deleted
            return None

    def _write(self, path: str, data: bytes | pa.Buffer) -> None:
        with self.writing(path):
            if not self.is_local:
                self._in_folder(path, lambda: self._send(path, data))
                return
            draft = self._draft()
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._place(draft, path)
            finally:
                draft.unlink(missing_ok=True)

    def put_file(self, made: Path, name: str) -> None:
        """Move a local file, in a folder of ``scratch``, into the store as ``name``."""
        path = self.path(name)
        with self.writing(path):
            self._put(made, path)

    def _put(self, made: Path, path: str) -> None:
        if self.is_local:
            _sync(made)
            self._place(made, path)
        else:
            self._in_folder(path, lambda: fs.copy_files(str(made), path, destination_filesystem=self.filesystem))

    def _place(self, made: Path, path: str) -> None:
        """Move a file of the local store to its place, from one moment to the next."""
        self._in_folder(path, lambda: os.replace(made, path))

    def _send(self, path: str, data: bytes | pa.Buffer) -> None:
        """Write a file of a remote store, which shows nothing of it before all of it is there."""
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def _in_folder(self, path: str, write: Callable[[], None]) -> None:
        """Write a file, into a folder that is made if need be."""
        try:
            write()
        except FileNotFoundError:
            self.filesystem.create_dir(os.path.dirname(path), recursive=True)
            write()

    # -- folders --------------------------------------------------------------------------------------------------

    def has_folder(self, kind: str, key: str) -> bool:
        """Whether the folder was written completely."""
        self._note_folder(kind, key)
        return self._is_file(self.path(kind, key, COMPLETE))

    @contextmanager
    def making(self, kind: str, key: str) -> Iterator[Path]:
        """A new local folder that becomes ``<kind>/<key>`` at the end (``save_folder``); after an error it is removed.

        Raises:
            FullStoreError: a disk is full.
        """
        with self.scratch_folder() as folder:
            with self.writing():
                yield folder
            self.save_folder(kind, key, folder)

    def save_folder(self, kind: str, key: str, source: str | Path) -> None:
        """Move the local folder ``source`` into the store as ``<kind>/<key>``; it appears whole or not at all.

        Where another process has just put it there, that one stays.
        """
        source, target = Path(source), self.path(kind, key)
        self._note_folder(kind, key)
        with self.writing(target):
            if self.is_local:
                self._move_folder(source, kind, key)
            else:
                self._upload_folder(source, kind, key)

    def _move_folder(self, source: Path, kind: str, key: str) -> None:
        target = Path(self.path(kind, key))
        with self.scratch_folder() as folder:
            made = folder / "made"
            shutil.move(source, made)  # within the store's disk in most cases, so that this is one step
            (made / COMPLETE).write_bytes(manifest_of(made).dumped())
            for file in made.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    _sync(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            while not self.has_folder(kind, key):
                try:
                    os.rename(made, target)
                    return
                except OSError:  # something is there
                    if not target.is_dir():
                        raise
                    self._clear_incomplete(target, folder / "before")

    @staticmethod
    def _clear_incomplete(target: Path, aside: Path) -> None:
        """Move what is at ``target`` aside; a folder that another process has just put there is moved back."""
        with suppress(FileNotFoundError):
            os.rename(target, aside)
            if (aside / COMPLETE).exists():
                with suppress(OSError):  # there is yet another one
                    os.rename(aside, target)
            shutil.rmtree(aside, ignore_errors=True)

    def _upload_folder(self, source: Path, kind: str, key: str) -> None:
        version = uuid.uuid4().hex[:8]
        inside = self.path(kind, key, version)
        manifest = manifest_of(source, version)
        self.filesystem.create_dir(inside, recursive=True)
        fs.copy_files(str(source), inside, destination_filesystem=self.filesystem)
        if self.has_folder(kind, key):
            self.filesystem.delete_dir(inside)
        else:
            self._write(self.path(kind, key, COMPLETE), manifest.dumped())
        shutil.rmtree(source)

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """What a complete folder holds; None if it is incomplete or not there.

        Raises:
            StoreError: it is damaged.
        """
        data = self.read_bytes("/".join((kind, key, COMPLETE)))
        if data is None:
            return None
        try:
            return Manifest.loaded(data)
        except ValueError as error:
            raise StoreError(
                f"{self.path(kind, key, COMPLETE)} is damaged ({error}); delete that folder and run the study again."
            ) from error

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
        target = self.path(kind, key)
        found = self.filesystem.get_file_info(fs.FileSelector(target, recursive=True))
        sizes = {info.path.removeprefix(f"{target}/"): info.size for info in found if info.type == fs.FileType.File}
        sizes.pop(COMPLETE, None)
        self._write(f"{target}/{COMPLETE}", Manifest(sizes).dumped())

    def folders(self, kind: str, prefix: str = "") -> list[str]:
        """Keys of the folders of ``kind`` that begin with ``prefix``, complete or not, sorted."""
        selector = fs.FileSelector(self.path(kind), allow_not_found=True)
        found = (i.base_name for i in self.filesystem.get_file_info(selector) if i.type == fs.FileType.Directory)
        return sorted(name for name in found if name.startswith(prefix))

    def delete_folder(self, kind: str, key: str) -> None:
        """Delete ``<kind>/<key>``, which is gone from one moment to the next."""
        path = self.path(kind, key)
        if self.is_local:
            aside = self._draft()
            with suppress(FileNotFoundError):
                os.rename(path, aside)
            shutil.rmtree(aside, ignore_errors=True)
            return
        if self._is_file(f"{path}/{COMPLETE}"):
            self.filesystem.delete_file(f"{path}/{COMPLETE}")
        if self.filesystem.get_file_info(path).type == fs.FileType.Directory:
            self.filesystem.delete_dir(path)

    def folder(self, kind: str, key: str) -> str:
        """Local path of a complete folder; a remote one is copied once to this machine's cache.

        Raises:
            StoreError: there is no such folder, or it is incomplete.
        """
        self._note_folder(kind, key)
        if self.is_local:
            if not self.has_folder(kind, key):
                raise StoreError(self._incomplete(kind, key))
            return self.path(kind, key)
        while True:
            manifest = self.manifest(kind, key)
            if manifest is None:
                raise StoreError(self._incomplete(kind, key))
            cached = self._cache() / kind / f"{key}-{content_key(vars(manifest))[:8]}"
            if cached.exists():
                return str(cached)
            if self._fetch(kind, key, manifest, cached):
                return str(cached)

    def _incomplete(self, kind: str, key: str) -> str:
        return f"{self.path(kind, key)} is missing or incomplete; run the study again to make it."

    def _cache(self) -> Path:
        """Where this machine keeps copies of the folders of this remote store."""
        return Path.home() / ".cache" / "raygeo" / content_key(self.shown)

    def _fetch(self, kind: str, key: str, manifest: Manifest, cached: Path) -> bool:
        """Copy a remote folder to ``cached``, where it appears whole; False if it was replaced meanwhile.

        Raises:
            StoreError: it is damaged, or cannot be kept.
        """
        with self.writing(str(cached)):
            cached.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="fetched-", dir=cached.parent) as staged:
                made = Path(staged) / "made"
                made.mkdir()
                source = self.path(kind, key, *([manifest.version] if manifest.version else []))
                try:
                    fs.copy_files(source, str(made), source_filesystem=self.filesystem)
                except OSError:
                    if self.manifest(kind, key) == manifest:
                        raise
                    return False
                wrong = [name for name, size in manifest.sizes.items() if _size(made / name) != size]
                if wrong and self.manifest(kind, key) == manifest:
                    raise StoreError(
                        f"{self.path(kind, key)} lacks {wrong[0]}, or it has another size than when it was written; "
                        "`raygeo store verify` names all that is damaged. Delete that folder and run the study again."
                    )
                if not wrong:
                    with suppress(OSError):  # another process was faster
                        os.rename(made, cached)
                return not wrong

    def stored(self, kind: str, key: str, *inside: str) -> AnyPath:
        """A path to a folder (or a file in it) that any machine may open; a remote folder is fetched on first use."""
        self._note_folder(kind, key)
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
        if not self.is_local:
            with self.writing():
                return Path(tempfile.mkdtemp(prefix="raygeo-"))
        draft = self._draft()
        with self.writing(str(draft)):
            draft.mkdir()
        return draft

    @contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """A temporary folder that is removed at the end."""
        folder = self.scratch()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _draft(self) -> Path:
        """A new name in the local store's ``scratch/`` that says which process made it (``machine``, process id)."""
        parent = Path(self.root) / SCRATCH
        with self.writing(str(parent)):
            parent.mkdir(exist_ok=True)
        return parent / f"{machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _sync(file: Path) -> None:
    """See a file on its disk, so that one that has a name has its content even after a loss of power."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


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
