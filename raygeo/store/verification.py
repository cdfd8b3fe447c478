"""Whether everything in a store can be read: rows of units and tables, sizes and sums of files."""

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raygeo.errors import StoreError
from raygeo.store.contents import LEASES, MLFLOW, RAY, Contents, Item
from raygeo.store.files import SCRATCH
from raygeo.store.manifest import COMPLETE
from raygeo.store.store import Store

_BLOCK = 1 << 20
_READERS = 8


@dataclass(frozen=True)
class Broken:
    """A file of a store, or a folder, that is not as it was written, and in which way."""

    path: str
    why: str


def broken(contents: Contents) -> Iterator[Broken]:
    """Everything that cannot be read or is not what it was, read to the end once."""
    store = contents.store
    wanted = [i for i in contents.items.values() if i.kind not in (SCRATCH, RAY) and i.name not in LEASES and i.files]
    folders = {id(item) for item in contents.folders}
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(lambda item: list(_of(store, item, id(item) in folders)), wanted):
            yield from found


def _of(store: Store, item: Item, folder: bool) -> Iterator[Broken]:
    if not folder:
        for path in item.files:
            yield from _attempt(path, partial(_check_file, store, path))
        return
    if not item.complete:
        return  # it counts as nothing until it is
    try:
        manifest = store.manifest(item.kind, item.name)
    except StoreError as error:
        yield Broken(item.path, str(error))
        return
    assert manifest is not None
    inside = f"{item.path}/{manifest.version}/" if manifest.version else f"{item.path}/"
    for name, size in manifest.sizes.items():
        path = inside + name
        if item.files.get(path) != size:
            found = f"it has {item.files[path]:,} bytes" if path in item.files else "it is missing"
            yield Broken(path, f"{found}; {size:,} were written")
        elif name in manifest.digests and (text := _read(store, path, manifest.digests[name])):
            yield Broken(path, text)
    for path in item.files:
        name = path.removeprefix(inside)
        if path.startswith(inside) and name != COMPLETE and name not in manifest.digests:
            yield from _attempt(path, partial(_check_file, store, path))


def _read(store: Store, path: str, digest: str) -> str:
    """Why a file is not the one with this SHA-256, or ""."""
    try:
        found = digest_in(store, path)
    except OSError as error:
        return f"it cannot be read: {error}"
    return "" if found == digest else "its content is not what was written (its SHA-256 is another)"


def digest_in(store: Store, name: str) -> str:
    """SHA-256 of a file in a store."""
    digest = hashlib.sha256()
    with store.filesystem.open_input_stream(store.path(name)) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _attempt(path: str, check: "partial[None]") -> Iterable[Broken]:
    try:
        check()
    except (OSError, ValueError, sqlite3.Error, pa.ArrowException) as error:
        return [Broken(path, " ".join(str(error).split()) or type(error).__name__)]
    return []


def _check_file(store: Store, name: str) -> None:
    """Read a file as what its name says it is.

    Raises:
        ValueError, OSError, ArrowException, sqlite3.Error: it is not.
    """
    path, suffix = store.path(name), Path(name).suffix
    if suffix == ".parquet":
        with pq.ParquetFile(path, filesystem=store.filesystem, page_checksum_verification=True) as file:
            rows = sum(batch.num_rows for batch in file.iter_batches())
            units = (file.schema_arrow.metadata or {}).get(b"raygeo.units")
            if units is not None and rows != (held := sum(count for _, count in json.loads(units))):
                raise ValueError(f"it has {rows:,} rows, and {held:,} by its list of units")
    elif suffix == ".json":
        json.loads(store.read_bytes(name) or b"")
    elif suffix == ".safetensors":
        _check_safetensors(store, name)
    elif name == MLFLOW:
        _check_database(store)
    else:
        digest_in(store, name)


def _check_safetensors(store: Store, name: str) -> None:
    """See that a file of tensors is as long as its header says."""
    with store.filesystem.open_input_file(store.path(name)) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > file.size():
            raise ValueError("it is cut off")
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
        if file.size() != whole:
            raise ValueError(f"it has {file.size():,} bytes, and its header says {whole:,}")


def _check_database(store: Store) -> None:
    with tempfile.TemporaryDirectory() as folder:
        local = store.path(MLFLOW)
        if not store.is_local:
            local = f"{folder}/{MLFLOW}"
            fs.copy_files(store.path(MLFLOW), local, source_filesystem=store.filesystem)
        database = sqlite3.connect(f"file:{local}?mode=ro", uri=True)
        try:
            [(said,), *_] = database.execute("PRAGMA integrity_check").fetchall()
        finally:
            database.close()
    if said != "ok":
        raise ValueError(said)
