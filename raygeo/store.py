"""The study's store: content-keyed tables and folders under a local path or a URI, written atomically.

Layout: ``units/<table>/<key>.parquet`` hold the rows of finished units of work; ``tables/<table>.parquet`` are what the
current study publishes from them; ``<kind>/<key>/`` are folders of files (students, deltas, tokens). A unit or folder
either exists whole or not at all, so any process may be killed at any time.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raygeo.errors import StoreError
from raygeo.tables import SCHEMAS, to_arrow

_COMPLETE = "_COMPLETE"
AnyPath = str | os.PathLike[str]
open_uri = fs.FileSystem.from_uri


class Store:
    """Open the store at ``location``, a path or any URI ``pyarrow.fs`` understands; ``create`` it if need be.

    Instances pickle as their location, so workers on other machines open the same store.

    Raises:
        StoreError: the location cannot be reached or written, or does not exist and ``create`` is false.
    """

    def __init__(self, location: str | Path, *, create: bool = True):
        text = str(location)
        self.is_local = urlparse(text).scheme in ("", "file")
        try:
            if self.is_local:
                root = Path(urlparse(text).path if text.startswith("file:") else text).expanduser().resolve()
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
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(
                f"the store {text!r} cannot be opened: {error}. Give a writable path or URI with --store."
            ) from error
        if not create and self.filesystem.get_file_info(self.root).type != fs.FileType.Directory:
            raise StoreError(f"there is no store at {text!r}; run a study first, or give its path.")

    def __reduce__(self):
        return (Store, (self.location,))

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    def path(self, *parts: str) -> str:
        """Path of something in the store, as the store's filesystem knows it."""
        return "/".join((self.root, *parts))

    # -- tables ---------------------------------------------------------------------------------------------------

    def units(self, table: str) -> set[str]:
        """Keys of all finished units of ``table``, whichever study made them."""
        selector = fs.FileSelector(self.path("units", table), allow_not_found=True)
        return {
            Path(info.path).stem for info in self.filesystem.get_file_info(selector) if info.path.endswith(".parquet")
        }

    def finished(self, tables: Iterable[str]) -> set[str]:
        """Keys finished in every one of ``tables``."""
        return set.intersection(*(self.units(table) for table in tables))

    def write_unit(self, key: str, rows: dict[str, list[dict[str, Any]] | pa.Table]) -> None:
        """Store the rows of one finished unit, one file a table (empty tables included)."""
        for table, content in rows.items():
            arrow = content if isinstance(content, pa.Table) else to_arrow(table, content)
            self._write_parquet(arrow, self.path("units", table, f"{key}.parquet"))

    def read_unit(self, table: str, key: str) -> pa.Table:
        """Rows of one finished unit."""
        return self._read_parquet(self.path("units", table, f"{key}.parquet"), table)

    def publish(self, table: str, keys: Iterable[str]) -> pa.Table:
        """Make ``tables/<table>.parquet`` the concatenation of the units ``keys``, in that order, and return it."""
        parts = [self.read_unit(table, key) for key in keys]
        merged = pa.concat_tables([SCHEMAS[table].empty_table(), *parts]).combine_chunks()
        self._write_parquet(merged, self.path("tables", f"{table}.parquet"))
        return merged

    def table(self, table: str) -> pa.Table:
        """The published ``table`` as Arrow (``.to_pandas()`` for pandas); empty if the study has not made it.

        Raises:
            StoreError: the name is no table of raygeo, or the file is damaged.
        """
        if table not in SCHEMAS:
            raise StoreError(f"there is no table {table!r}; raygeo's tables are {', '.join(SCHEMAS)}.")
        path = self.path("tables", f"{table}.parquet")
        if self.filesystem.get_file_info(path).type != fs.FileType.File:
            return SCHEMAS[table].empty_table()
        return self._read_parquet(path, table)

    def tables(self) -> dict[str, pa.Table]:
        """All tables by name, empty ones included."""
        return {name: self.table(name) for name in SCHEMAS}

    def _read_parquet(self, path: str, table: str) -> pa.Table:
        try:
            return pq.read_table(path, filesystem=self.filesystem, schema=SCHEMAS[table])
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); delete it and run the study again to make it anew."
            ) from error

    def _write_parquet(self, table: pa.Table, path: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._write(path, sink.getvalue())

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
        try:
            self.filesystem.create_dir(os.path.dirname(path), recursive=True)
            # An object store shows an object only once its upload is complete; a local file needs a rename for that.
            target = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else path
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
            if self.is_local:
                os.replace(target, path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error}. Check free space and permissions.") from error

    # -- folders --------------------------------------------------------------------------------------------------

    def has_folder(self, kind: str, key: str) -> bool:
        """Whether the folder was written completely."""
        marker = self.path(kind, key, _COMPLETE)
        return self.filesystem.get_file_info(marker).type == fs.FileType.File

    def save_folder(self, kind: str, key: str, source: str | Path) -> None:
        """Move the local folder ``source`` into the store as ``<kind>/<key>``; it appears whole or not at all."""
        source = Path(source)
        target = self.path(kind, key)
        try:
            if self.is_local:
                (source / _COMPLETE).touch()
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                staged = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
                shutil.move(source, staged)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(staged, target)
            else:
                self.filesystem.create_dir(target, recursive=True)
                fs.copy_files(str(source), target, destination_filesystem=self.filesystem)
                self._write(f"{target}/{_COMPLETE}", b"")
                shutil.rmtree(source)
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error}. Check free space and permissions.") from error

    def add_to_folder(self, kind: str, key: str, source: str | Path) -> None:
        """Put the files of the local folder ``source`` into ``<kind>/<key>``, which several processes may fill.

        The folder does not count as written until ``complete_folder``.
        """
        target = self.path(kind, key)
        try:
            self.filesystem.create_dir(target, recursive=True)
            if self.is_local:
                for file in Path(source).iterdir():
                    shutil.move(file, Path(target) / file.name)
            else:
                fs.copy_files(str(source), target, destination_filesystem=self.filesystem)
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error}. Check free space and permissions.") from error

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

    def scratch(self) -> Path:
        """A new local temporary folder, on the store's own disk when the store is local (so that moves are renames)."""
        parent = None
        if self.is_local:
            parent = Path(self.root) / "scratch"
            parent.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))


class StoredPath(os.PathLike[str]):
    """A folder of a remote store, or a file in one; where it is used as a path, the folder is first copied there."""

    def __init__(self, store: Store, kind: str, key: str, *inside: str):
        self.store, self.kind, self.key, self.inside = store, kind, key, inside

    def __fspath__(self) -> str:
        return os.path.join(self.store.folder(self.kind, self.key), *self.inside)

    __str__ = __fspath__
