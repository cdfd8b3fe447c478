"""The study's store: what is in it, who may write to it, and how it is kept in order."""

from raygeo.store.folders import AnyPath, StoredPath
from raygeo.store.full import is_full
from raygeo.store.store import Store
from raygeo.store.tables import outdated_units

__all__ = ["AnyPath", "Store", "StoredPath", "is_full", "outdated_units"]
