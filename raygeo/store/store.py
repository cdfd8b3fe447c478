"""The store: everything a study makes, content-keyed, under a local path or a URI."""

from pathlib import Path
from typing import Self

from raygeo.errors import NoStoreError, StoreError
from raygeo.store.folders import Folders
from raygeo.store.ledger import FOLDER as STUDIES
from raygeo.store.tables import Tables

BESIDE = "store"
"""The folder that studies put their stores into unless they say where."""
LEASE, COPYING, TRACKED = "lease.json", "copying.json", "outbox/study.json"
"""What lies in a store while a process writes to it, in a copy until it is whole, and where MLflow was told of it."""


class Store(Tables, Folders):
    """Open the store at ``location``, a path or any URI ``pyarrow.fs`` understands; ``create`` it if need be.

    A unit or folder either exists whole or not at all, so any process may be killed at any time. Instances pickle as
    their location, so workers on other machines open the same store.

    Raises:
        StoreError: the location cannot be reached or written, or does not exist and ``create`` is false.
    """

    @classmethod
    def found(cls, location: str | Path) -> Self:
        """Open the store that a study or comparison has left at ``location``; nothing is written.

        Raises:
            NoStoreError: there is none.
            StoreError: the location cannot be reached.
        """
        try:
            store = cls(location, create=False)
        except NoStoreError as error:
            if Path(location).is_file():
                raise NoStoreError(f"{str(location)!r} is a file; give the folder of a store.") from error
            if (beside := Path(BESIDE, location)).is_dir():
                raise NoStoreError(f"there is no store at {str(location)!r}; did you mean '{beside}'?") from error
            raise
        store.check_used()
        return store

    def check_used(self) -> None:
        """See that a study, a comparison or a copy of a store was begun here.

        Raises:
            NoStoreError: none was: there is nothing here, or something else.
        """
        begun = any(self._is_file(self.path(name)) for name in (LEASE, COPYING, TRACKED))
        if not (begun or self.names() or self.folders("units") or self.files(STUDIES, ".json")):
            raise self.unused()

    def check_own(self, name: str) -> None:
        """See that a file that is to be written is this store's, if it is there.

        Raises:
            StoreError: it is there and no study or comparison was begun here.
        """
        if not self._is_file(self.path(name)):
            return
        try:
            self.check_used()
        except NoStoreError as error:
            raise StoreError(
                f"{self.shown} is no store and holds a file {name}, which would be overwritten; give another --store."
            ) from error

    def unused(self) -> NoStoreError:
        """What to say where there is neither a study nor a comparison."""
        return NoStoreError(f"{self.shown} holds neither a study nor a comparison; make one with `raygeo run`.")
