"""The studies that come with raygeo, which commands know by name, and the schema by which editors complete studies."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

_STUDIES = Path(__file__).parents[1] / "studies"
_BESIDE = "# yaml-language-server: $schema=schema.json"
MODELINE = f"# yaml-language-server: $schema={(_STUDIES / 'schema.json').as_uri()}"
"""The first line of a study file, wherever it lies, that names an editor the schema that is installed with raygeo."""


@dataclass(frozen=True)
class Shipped:
    """A study file of raygeo's: its ``name``, what it is ``about`` in a sentence, and its ``text``."""

    name: str
    about: str
    text: str


def shipped_studies() -> Mapping[str, Shipped]:
    """Every study in ``raygeo/studies`` by name, in alphabetical order, as it would be were it elsewhere.

    Each begins with a comment on what it is, below the line for editors.
    """
    found = {}
    for file in sorted(_STUDIES.glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        about = _first_sentence(text.removeprefix(f"{_BESIDE}\n"))
        found[file.stem] = Shipped(file.stem, about, text.replace(_BESIDE, MODELINE, 1))
    return found


def _first_sentence(text: str) -> str:
    """The first sentence of the comment that a text begins with."""
    lines = (line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))
    comment = " ".join(lines)
    return re.split(r"(?<=[.?])\s", comment, maxsplit=1)[0]
