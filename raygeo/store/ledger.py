"""What each study in a store needs, kept so that what none needs can be told from what one does."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from raygeo.settings import content_key

FOLDER = "studies"


@dataclass
class Ledger:
    """Units by table and folders by kind that the study ``name`` has asked for; ``whole`` once it came to its end.

    A study asks for all it needs whenever it is run, what is there already included, so that a ledger that is whole
    holds everything.
    """

    name: str
    units: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    folders: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    whole: bool = False

    @property
    def file(self) -> str:
        """Its file's name in the store."""
        return f"{FOLDER}/{content_key('study', self.name)}.json"

    def note(self, tables: Iterable[str], keys: Iterable[str]) -> None:
        """Note that the study needs these units."""
        keys = set(keys)
        for table in tables:
            self.units[table] |= keys

    def dumped(self) -> bytes:
        """As JSON."""
        held = {
            what: {name: sorted(keys) for name, keys in sorted(known.items())}
            for what, known in (("units", self.units), ("folders", self.folders))
        }
        return json.dumps({"name": self.name, "whole": self.whole} | held).encode()

    @classmethod
    def loaded(cls, data: bytes) -> "Ledger":
        """From JSON.

        Raises:
            ValueError: it is something else.
        """
        found = json.loads(data)
        try:
            ledger = cls(str(found["name"]), whole=bool(found["whole"]))
            for table, keys in found["units"].items():
                ledger.units[table] |= set(keys)
            for kind, keys in found["folders"].items():
                ledger.folders[kind] |= set(keys)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no ledger of a study: {error!r}") from error
        return ledger
