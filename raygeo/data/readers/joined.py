"""Completions and scores that stand in different files, joined on a key."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raygeo.data.readers.base import MappedReader
from raygeo.data.readers.csv import CsvReader
from raygeo.data.readers.jsonl import JsonlReader
from raygeo.data.readers.parquet import ParquetReader
from raygeo.data.shapes.fields import look_up
from raygeo.data.validation import Record
from raygeo.settings import content_key

_Source = Annotated[JsonlReader | ParquetReader | CsvReader, Field(discriminator="type")]


class JoinedReader(MappedReader):
    """Two sources, such as rollouts and their scores: each record of ``left`` gets the fields that it lacks from the
    record of ``right`` with the same key.

    ``right`` is held in memory, so it should be the one with the shorter records. A record of ``left`` without a
    partner, or whose key names more than one, is set aside. Only where the records come from, ``type`` and ``path``,
    is taken of either source; shape and fields are those given here.
    """

    reader_revision: ClassVar[int] = 2

    type: Literal["joined"] = "joined"
    left: _Source
    """The records that become rollouts, in order."""
    right: _Source
    """What is added to them."""
    on: str
    """The key whose values join them, in both; ``meta.id`` looks into nested records. A number and the text of its
    digits are one key."""

    def fingerprint(self) -> str:
        """What both sources hold."""
        return content_key(self.left.fingerprint(), self.right.fingerprint())

    def made_of(self) -> dict[str, Any]:
        """The settings, without the places of files."""
        return super().made_of() | {"left": self.left.made_of(), "right": self.right.made_of()}

    def _raw(self) -> Iterator[Record]:
        how = {"fields": self.fields, "shape": self.shape}
        left, right = (source.model_copy(update=how) for source in (self.left, self.right))
        known: dict[str, Mapping[str, Any] | None] = {}
        for record in right._raw():
            if record.error is not None:
                yield record
            elif (value := look_up(record.values, self.on)) is not None:
                known[_key(value)] = None if _key(value) in known else record.values
        for record in left._raw():
            if record.error is None:
                yield self._joined(record, known)
            else:
                yield record

    def _joined(self, record: Record, known: Mapping[str, Mapping[str, Any] | None]) -> Record:
        value = look_up(record.values, self.on)
        if value is None:
            return Record(record.origin, record.line, error=f"missing field {self.on!r}", text=record.text)
        key = _key(value)
        if key not in known:
            error = f"no record of the other source has its {self.on}"
        elif (partner := known[key]) is None:
            error = f"several records of the other source have its {self.on}"
        else:
            found = {name: value for name, value in record.values.items() if value is not None}
            return Record(record.origin, record.line, {**partner, **found}, text=record.text)
        return Record(record.origin, record.line, record.values, error=error, text=record.text)


def _key(value: Any) -> str:
    """What a value joins by: its text, that of a whole number without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
