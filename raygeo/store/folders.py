"""Folders of files, ``<kind>/<key>/``: students, deltas, tokens; each is there whole or not at all.

A local one is moved to its place in one step. An object store has no moves: the files of a folder are put into a
subfolder of their own, which ``_COMPLETE``, written last, names.
"""

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from raygeo.errors import StoreError
from raygeo.settings import content_key
from raygeo.store.files import Files, sync
from raygeo.store.manifest import COMPLETE, Manifest, manifest_of

AnyPath = str | os.PathLike[str]


class Folders(Files):
    """Folders of a store."""

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
                    sync(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            while not self.has_folder(kind, key):
                try:
                    os.rename(made, target)
                    return
                except OSError:  # something is there
                    if not target.is_dir():
                        raise
                    self._clear_incomplete(target)

    @staticmethod
    def _clear_incomplete(target: Path) -> None:
        """Empty an incomplete folder, onto which one can be moved; one that is moved there meanwhile is not touched."""
        with suppress(FileNotFoundError):
            opened = os.open(target, os.O_RDONLY | os.O_DIRECTORY)  # stays the same folder, whatever its place holds
            try:
                if COMPLETE in (names := os.listdir(opened)):
                    return
                for name in names:
                    with suppress(FileNotFoundError):
                        if stat.S_ISDIR(os.stat(name, dir_fd=opened, follow_symlinks=False).st_mode):
                            shutil.rmtree(name, dir_fd=opened)
                        else:
                            os.unlink(name, dir_fd=opened)
            finally:
                os.close(opened)

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
                    sync(file)
                    shutil.move(file, Path(target) / file.name)
            else:
                fs.copy_files(str(source), target, destination_filesystem=self.filesystem)

    def complete_folder(self, kind: str, key: str) -> None:
        """Mark ``<kind>/<key>`` as complete."""
        target = self.path(kind, key)
        found = self.filesystem.get_file_info(fs.FileSelector(target, allow_not_found=True, recursive=True))
        sizes = {info.path.removeprefix(f"{target}/"): info.size for info in found if info.type == fs.FileType.File}
        sizes.pop(COMPLETE, None)
        self._write(f"{target}/{COMPLETE}", Manifest(sizes, completion=uuid.uuid4().hex).dumped())

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
            cached = self._cache() / kind / content_key(vars(manifest)) / key
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

    def folder_bytes(self, kind: str, key: str) -> int:
        """What the files of a folder take, whether it is complete or not."""
        selector = fs.FileSelector(self.path(kind, key), allow_not_found=True, recursive=True)
        return sum(info.size or 0 for info in self.filesystem.get_file_info(selector))


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


class StoredPath(os.PathLike[str]):
    """A folder of a remote store, or a file in one; where it is used as a path, the folder is first copied there."""

    def __init__(self, store: Folders, kind: str, key: str, *inside: str):
        self.store, self.kind, self.key, self.inside = store, kind, key, inside

    def __fspath__(self) -> str:
        return os.path.join(self.store.folder(self.kind, self.key), *self.inside)

    __str__ = __fspath__
