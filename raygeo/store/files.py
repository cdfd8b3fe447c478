"""A place under a local path or a URI: its files, written whole, and scratch to make them in.

In a local store everything is made in ``scratch/`` and moved to its place when it is whole. An object store shows an
object when its upload is complete.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raygeo.errors import FullStoreError, NoStoreError, StoreError
from raygeo.paths import is_inside, without_credentials
from raygeo.store import location as places
from raygeo.store.full import is_full
from raygeo.store.ledger import Ledger
from raygeo.store.process import machine

SCRATCH = "scratch"
_LONGEST = 255
"""Bytes that a name may have on file systems."""


class Files:
    """Open the place at ``location``, a path or any URI ``pyarrow.fs`` understands; ``create`` it if need be.

    Instances pickle as their location, so workers on other machines open the same place.

    Raises:
        StoreError: the location cannot be reached or written, or does not exist and ``create`` is false.
    """

    def __init__(self, location: str | Path, *, create: bool = True):
        text = str(location)
        self.ledger: Ledger | None = None
        """Where what is asked of this instance is noted, if it is."""
        shown = without_credentials(text)
        try:
            self.is_local = not places.is_uri(text)
            if self.is_local:
                root = places.local_root(text)
                if create:
                    root.mkdir(parents=True, exist_ok=True)
                self.filesystem: fs.FileSystem = fs.LocalFileSystem()
                self.root = str(root)
                self.location = self.root
            else:
                self.filesystem, self.root = places.open_uri(text)
                if not self.root:
                    raise ValueError("it names no bucket")
                if create:
                    self.filesystem.create_dir(self.root, recursive=True)
                self.location = places.extended(text, "")
            found = create or self.filesystem.get_file_info(self.root).type == fs.FileType.Directory
        except (OSError, ValueError, pa.ArrowException) as error:
            said = str(error).replace(text, shown)
            raise StoreError(
                f"the store {shown!r} cannot be opened: {said}. Give a writable path or URI with --store."
            ) from error
        if not found:
            raise NoStoreError(f"there is no store at {shown!r}; run a study first, or give its path.")

    def __reduce__(self):
        return (type(self), (self.location,))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown!r})"

    @property
    def shown(self) -> str:
        """The location as it may be shown, without a password."""
        return without_credentials(self.location)

    def path(self, *parts: str) -> str:
        """Path of something in the store, as the store's filesystem knows it.

        Raises:
            StoreError: it would not be in the store.
        """
        for part in parts:
            if not is_inside(part):
                raise StoreError(f"{part!r} leads out of {self.shown}; what names it is damaged, or not to be trusted.")
            if any(len(os.fsencode(name)) > _LONGEST for name in part.split("/")):
                raise StoreError(f"{part[:40]!r}... in {self.shown} is too long for a name; what gives it is damaged.")
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
            sync(made)
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

    def files(self, folder: str, suffix: str) -> list[str]:
        """Names of what lies in a folder of the store and ends in ``suffix``."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        return [info.base_name for info in self.filesystem.get_file_info(selector) if info.extension == suffix[1:]]

    def _is_file(self, path: str) -> bool:
        return self.filesystem.get_file_info(path).type == fs.FileType.File

    def free_bytes(self) -> int | None:
        """What is free on the store's disk; None where that cannot be known."""
        return shutil.disk_usage(self.root).free if self.is_local else None

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


def sync(file: Path) -> None:
    """See a file on its disk, so that one that has a name has its content even after a loss of power."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
