"""Rows of Arrow as Python holds them."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa


def rows_of(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a batch or table: ``values``, or the ``error`` of one that Python cannot hold (invalid Unicode)."""
    try:
        yield from ({"values": values} for values in batch.to_pylist())
    except (ValueError, OverflowError):
        for row in range(batch.num_rows):
            try:
                yield {"values": batch.slice(row, 1).to_pylist()[0]}
            except UnicodeDecodeError:
                yield {"error": "not UTF-8"}
            except (ValueError, OverflowError) as error:
                yield {"error": f"a value cannot be read ({type(error).__name__})"}
