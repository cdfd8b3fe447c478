"""Records as they come, checked one by one and laid down in parts: what every later step of the rollouts reads."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from raygeo.data.validation import Record, SetAside, checked, snippet
from raygeo.tables import SCHEMAS, schema

PART_ROWS = 2048
"""Records in a part."""

RECORDS_REVISION = 1
"""Counts the ways records have been checked and laid down."""

RECORDS = pa.unify_schemas(
    [
        schema(
            """Records in the order they were read: where each stands, the beginning of its text, and the `reason` why
            it cannot be used, or else its fields; `correct`, `reward`, `prompt_id` and `sample` may still be null.""",
            "origin: text; line: int; reason, snippet: text",
        ),
        SCHEMAS["rollouts"].remove_metadata(),
    ]
)
"""A part: the columns of the rollouts, and where each record came from."""

PARTS = schema("The parts of what was read, in order.", "part: text")


def record_parts(records: Iterable[Record], rows: int) -> Iterator[pa.Table]:
    """Lay records down in parts of ``rows``, in order; what cannot be used says why."""
    records = iter(records)
    while part := [_row(record) for record in islice(records, rows)]:
        yield pa.Table.from_pylist(part, schema=RECORDS)


def _row(record: Record) -> dict[str, Any]:
    found = {"origin": record.origin, "line": record.line, "snippet": snippet(record)}
    try:
        return found | checked(record)
    except SetAside as reason:
        return found | {"reason": str(reason)}
