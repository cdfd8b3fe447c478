"""What lies in a store, from one listing of it: units, folders, tables and the rest, with sizes and ages."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pyarrow import fs

from raygeo.store.files import SCRATCH
from raygeo.store.ledger import FOLDER as STUDIES
from raygeo.store.ledger import Ledger
from raygeo.store.manifest import COMPLETE
from raygeo.store.store import LEASE, Store
from raygeo.store.tables import BATCH

log = logging.getLogger(__name__)

CHECKPOINTS, JOURNALS, DELTAS, SNAPSHOTS, RAY = "checkpoints", "journals", "deltas", "snapshots", "ray"
MLFLOW, ARTIFACTS, LOGS = "mlflow.db", "mlartifacts", "logs"
LEASES = (LEASE, "lease.lock")


@dataclass
class Item:
    """Something in a store that is there, or goes, as a whole: ``kind`` and ``name`` are its path.

    ``files`` are paths within the store with their sizes in bytes; ``changed`` is when the newest was written, in
    nanoseconds. ``keys`` are the units in a file of units; ``complete`` is whether a folder has its ``_COMPLETE``.
    """

    kind: str
    name: str
    files: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    keys: tuple[str, ...] = ()
    complete: bool = False

    @property
    def path(self) -> str:
        """Where it is in the store."""
        return f"{self.kind}/{self.name}" if self.kind else self.name

    @property
    def size(self) -> int:
        """Bytes; files that are linked count as what they link to."""
        return sum(self.files.values())

    def add(self, path: str, info: Any) -> None:
        """Count a file in."""
        self.files[path] = info.size or 0
        self.changed = max(self.changed, info.mtime_ns or 0)


class Contents:
    """Everything in ``store`` at one moment.

    Raises:
        StoreError: a file of several units cannot be read.
    """

    def __init__(self, store: Store):
        self.store = store
        self.items: dict[tuple[str, str], Item] = {}
        root = f"{store.root}/"
        for info in store.filesystem.get_file_info(fs.FileSelector(store.root, recursive=True)):
            path = info.path.removeprefix(root)
            parts = path.split("/")
            if info.type == fs.FileType.Directory:
                if len(parts) == 2 and parts[0] not in ("units", "tables", ARTIFACTS):
                    self._item(parts[0], parts[1])
                continue
            kind, name = _place(parts)
            item = self._item(kind, name)
            item.add(path, info)
            item.complete |= parts[2:] == [COMPLETE]
        units = [i for i in self.items.values() if i.kind.startswith("units/") and i.name.endswith(".parquet")]
        batches = [item for item in units if item.name.endswith(BATCH)]
        for item in units:
            item.keys = (item.name.removesuffix(".parquet"),)
        for item, keys in zip(batches, store.units_in([item.path for item in batches]), strict=True):
            item.keys = keys

    def _item(self, kind: str, name: str) -> Item:
        return self.items.setdefault((kind, name), Item(kind, name))

    def of(self, kind: str) -> list[Item]:
        """Items of a kind: ``units/<table>``, ``tables``, ``deltas`` and so on, "" for single files."""
        return [item for item in self.items.values() if item.kind == kind]

    @property
    def kinds(self) -> dict[str, list[Item]]:
        """Items by kind, in alphabetical order."""
        found: defaultdict[str, list[Item]] = defaultdict(list)
        for item in self.items.values():
            found[item.kind].append(item)
        return dict(sorted(found.items()))

    @property
    def units(self) -> list[Item]:
        """Files of units."""
        return [item for item in self.items.values() if item.keys]

    @property
    def folders(self) -> list[Item]:
        """Folders that are complete or ought to be: neither scratch nor journals nor single files."""
        others = {SCRATCH, JOURNALS, RAY, ARTIFACTS, STUDIES, "tables", ""}
        return [
            item
            for item in self.items.values()
            if item.kind not in others and not item.kind.startswith("units") and not self._is_file(item)
        ]

    @staticmethod
    def _is_file(item: Item) -> bool:
        return list(item.files) == [item.path]

    @property
    def size(self) -> int:
        """Bytes of everything."""
        return sum(item.size for item in self.items.values())

    def finished(self, table: str) -> set[str]:
        """Keys of the units of a table."""
        return {key for item in self.of(f"units/{table}") for key in item.keys}

    @cached_property
    def studies(self) -> dict[str, Ledger]:
        """What the studies in the store need, by their names."""
        return {ledger.name: ledger for ledger in self._ledgers()}

    def _ledgers(self) -> Iterator[Ledger]:
        for item in self.of(STUDIES):
            try:
                yield Ledger.loaded(self.store.read_bytes(item.path) or b"")
            except ValueError as error:
                log.warning("%s cannot be read (%s): run that study once more", item.path, error)


def _place(parts: list[str]) -> tuple[str, str]:
    """Kind and name of the item that a file belongs to."""
    if parts[0] == "units" and len(parts) > 2:
        return f"units/{parts[1]}", "/".join(parts[2:])
    if len(parts) == 1:
        return "", parts[0]
    if parts[0] == ARTIFACTS:
        return "", ARTIFACTS
    return parts[0], parts[1]
