"""Work in batches that fit into memory: halved where it runs out, and remembered."""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from raygeo.errors import StudentError
from raygeo.memory import free_memory, lacks_memory

Item = TypeVar("Item")
Value = TypeVar("Value")

log = logging.getLogger(__name__)

_FITTED: dict[Hashable, int] = {}


def in_batches(
    run: Callable[[Sequence[Item]], Sequence[Value]],
    items: Sequence[Item],
    batch_size: int,
    *,
    what: str,
    key: Hashable = None,
) -> list[Value]:
    """Give ``run`` consecutive batches of ``items``, ``batch_size`` at most, and join what it gives, one value an item.

    Where memory runs out, the batch is halved and given again, as often as it takes; the size that fitted is that of
    all later batches, in this call and in those of this process with the same ``key`` (by default ``what``), and said
    in the log. So ``run`` must be able to repeat a batch: results are those of smaller batches from then on, equal as
    far as they do not depend on the batch.

    Raises:
        StudentError: a single item does not fit; ``what`` says what it is.
    """
    key = what if key is None else key
    size = min(batch_size, _FITTED.get(key, batch_size))
    done: list[Value] = []
    while len(done) < len(items):
        batch = items[len(done) : len(done) + size]
        try:
            found: Sequence[Value] | None = run(batch)
        except Exception as error:
            if not lacks_memory(error):
                raise
            found, why = None, " ".join(str(error).split())[:200]
        if found is not None:
            done += found
            continue
        free_memory()  # outside the handler, where the frames that held the batch are gone
        if len(batch) == 1:
            raise StudentError(
                f"{what}: there is no memory for a batch of one ({why}). Shorten it, or use more memory."
            )
        size = _FITTED[key] = (len(batch) + 1) // 2
        log.warning("%s: no memory for a batch of %d; halved to %d from here on", what, len(batch), size)
    return done


def fitted(key: Hashable) -> int | None:
    """The batch that fitted after memory ran out in work with this key; None if it never did in this process."""
    return _FITTED.get(key)
