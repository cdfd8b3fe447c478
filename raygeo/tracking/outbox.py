"""What MLflow has not taken yet, kept in the store."""

import json
import logging
import os
import time
from collections.abc import Iterable
from typing import Any

from pyarrow import fs

from raygeo.store import Store
from raygeo.store.store import TRACKED

FOLDER = "outbox"
_FILE_BYTES = 2**20

Entry = dict[str, Any]
"""A ``call`` of ``Remote`` with its arguments, as plain data."""

log = logging.getLogger(__name__)


class Outbox:
    """Entries in the order they were made, as lines of JSON in files that are written whole.

    Several processes may write and remove files: what is sent twice is logged once.
    """

    def __init__(self, store: Store):
        self.store = store
        self.name, self.text = "", ""

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries behind all others.

        Raises:
            StoreError: the store cannot be written.
        """
        added = "".join(json.dumps(entry) + "\n" for entry in entries)
        if not added:
            return
        if not self.name or len(self.text) > _FILE_BYTES:
            self.name, self.text = f"{time.time_ns():020d}-{os.getpid()}.jsonl", ""
        self.store.write_bytes(f"{FOLDER}/{self.name}", (self.text + added).encode())
        self.text += added

    def files(self) -> list[str]:
        """Names of the files, the oldest first."""
        selector = fs.FileSelector(self.store.path(FOLDER), allow_not_found=True)
        names = (info.base_name for info in self.store.filesystem.get_file_info(selector))
        return sorted(name for name in names if name.endswith(".jsonl"))

    def read(self, name: str) -> list[Entry]:
        """The entries of a file; lines that are damaged are left out."""
        entries = []
        for line in (self.store.read_bytes(f"{FOLDER}/{name}") or b"").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                entries.append(entry)
            else:
                log.warning("%s/%s holds a damaged line, which is left out", FOLDER, name)
        return entries

    def remove(self, name: str) -> None:
        """Delete a file all of whose entries were sent."""
        if name == self.name:
            self.name, self.text = "", ""
        path = self.store.path(FOLDER, name)
        if self.store.filesystem.get_file_info(path).type == fs.FileType.File:
            self.store.filesystem.delete_file(path)

    def clear(self) -> None:
        """Delete all files."""
        for name in self.files():
            self.remove(name)

    def __len__(self) -> int:
        return sum(len(self.read(name)) for name in self.files())

    def note(self, **known: str) -> None:
        """Note whose entries these are: the study, the server that they are for, and the identity of the store."""
        if known != self.noted():
            self.store.write_bytes(TRACKED, json.dumps(known).encode())

    def noted(self) -> dict[str, str]:
        """What was noted last; nothing if nothing was."""
        try:
            noted = json.loads(self.store.read_bytes(TRACKED) or b"{}")
        except ValueError:
            return {}
        return noted if isinstance(noted, dict) else {}
