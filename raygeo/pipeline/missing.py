"""What failed and was left out of a study or comparison, remembered in the table ``missing`` of its store."""

from raygeo.errors import StoreError
from raygeo.store import Store
from raygeo.tables import to_arrow

TABLE = "missing"


def missing_parts(store: Store) -> list[dict[str, str]]:
    """The rows of the table; none if it is not there, or damaged."""
    try:
        return store.table(TABLE).to_pylist()
    except StoreError:
        return []


def note_missing(store: Store, stage: str, part: str, reason: str) -> None:
    """Remember that ``part`` of ``stage`` is missing, and why.

    Raises:
        StoreError: the store cannot be written.
    """
    others = [row for row in missing_parts(store) if (row["stage"], row["part"]) != (stage, part)]
    _publish(store, [*others, {"stage": stage, "part": part, "reason": reason}])


def forget_missing(store: Store, stage: str | None = None) -> None:
    """Forget what was missing of a stage that is to be made again, or of all stages.

    Raises:
        StoreError: the store cannot be written.
    """
    rows = missing_parts(store)
    kept = [row for row in rows if stage is not None and row["stage"] != stage]
    if len(kept) < len(rows) or not store.has_table(TABLE):
        _publish(store, kept)


def _publish(store: Store, rows: list[dict[str, str]]) -> None:
    store.publish_rows(TABLE, to_arrow(TABLE, rows))
