"""JSON lines whose fields the user names."""

from collections.abc import Iterator
from typing import Literal

from raygeo.data.readers.base import MappedReader
from raygeo.data.readers.files import hash_lines, json_lines
from raygeo.data.validation import Record


class JsonlReader(MappedReader):
    """JSON lines, possibly compressed (``.gz``, ``.zst``, ``.bz2``)."""

    type: Literal["jsonl"] = "jsonl"
    path: str | tuple[str, ...]
    """Files, as paths or as URIs that pyarrow understands."""

    def fingerprint(self) -> str:
        """SHA-256 of the files."""
        return hash_lines(self.path)

    def _raw(self) -> Iterator[Record]:
        return json_lines(self.path)
