"""The studies that come with raygeo, which commands know by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile


@dataclass(frozen=True)
class Shipped:
    """A study file of raygeo's: its ``name``, what it is ``about`` in a sentence, and its ``text``."""

    name: str
    about: str
    text: str


def shipped_studies() -> Mapping[str, Shipped]:
    """Every study in ``raygeo/studies`` by name, in alphabetical order; each begins with a comment on what it is."""
    found = {}
    for file in sorted(files("raygeo").joinpath("studies").iterdir(), key=lambda file: file.name):
        name, _, kind = file.name.rpartition(".")
        if kind == "yaml":
            text = file.read_text(encoding="utf-8")
            found[name] = Shipped(name, _first_sentence(text), text)
    return found


def _first_sentence(text: str) -> str:
    """The first sentence of the comment that a text begins with."""
    lines = (line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))
    comment = " ".join(lines)
    return re.split(r"(?<=[.?])\s", comment, maxsplit=1)[0]
