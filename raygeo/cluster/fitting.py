"""What batches a workload's memory sufficed for, remembered in the store from one study to the next."""

import json
from collections.abc import Mapping

from raygeo.settings import content_key
from raygeo.store import Store
from raygeo.workload import Workload

FOLDER = "fitting"


class Fitting:
    """The batches that ``workload`` was once halved to in this store, if it was.

    They are known by its name, its student and the batches it asks for; delete ``fitting/`` in the store to have those
    tried again, on a larger device, say.
    """

    def __init__(self, store: Store, workload: Workload):
        self.store, self.name = store, _name(workload)
        self.least: dict[str, int] = {}

    def known(self) -> dict[str, int]:
        """The batches that fitted before; none where the ones asked for were never too large."""
        data = self.store.read_bytes(self.name)
        self.least = {} if data is None else json.loads(data)
        return self.least

    def learn(self, batches: Mapping[str, int]) -> bool:
        """Remember ``batches`` that had to be halved; whether they are smaller than any before."""
        if not batches or (self.least and sum(batches.values()) >= sum(self.least.values())):
            return False
        self.least = dict(batches)
        self.store.write_bytes(self.name, json.dumps(self.least).encode())
        return True


def _name(workload: Workload) -> str:
    return f"{FOLDER}/{workload.name}-{content_key(str(workload.base), workload.batches)}.json"


def listed(batches: Mapping[str, int]) -> str:
    """Batches in words."""
    return " and ".join(f"{name} {size}" for name, size in batches.items())
