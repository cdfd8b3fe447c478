"""What the losses have selected, stored once for all runs, and mapped into memory by every worker that reads it."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygeo.data.behaviour import behaviour_logprobs
from raygeo.data.teacher import TOP_COLUMNS
from raygeo.data.tokens import RolloutTokens
from raygeo.losses.base import Example, Loss
from raygeo.settings import content_key, unit_key
from raygeo.store import AnyPath, Store
from raygeo.tables import SCHEMAS

SELECTIONS = "selections"
BEHAVIOUR = "behaviour"
_LONG = ("prompt", "gold", "completion", "logprobs", *TOP_COLUMNS)
_ARRAYS = ("rows", "weights", "offsets")


class Examples(Sequence[Example]):
    """Examples that lie in flat arrays: the rows and weights of example ``i`` from ``offsets[i]`` to the next."""

    def __init__(self, rows: np.ndarray, weights: np.ndarray, offsets: np.ndarray):
        self.rows, self.weights, self.offsets = rows, weights, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = self.offsets[index % len(self) : index % len(self) + 2]
        return Example(tuple(self.rows[start:end].tolist()), tuple(self.weights[start:end].tolist()))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))


def keep_selection(store: Store, loss: Loss, rollouts: str, examples: Sequence[Example]) -> None:
    """Store what ``loss`` selects of the rollouts with this key, unless it is there."""
    key = _key(loss, rollouts)
    if store.has_folder(SELECTIONS, key):
        return
    with store.making(SELECTIONS, key) as folder:
        np.save(folder / "rows.npy", np.array([*chain.from_iterable(e.rows for e in examples)], dtype=np.int64))
        np.save(folder / "weights.npy", np.array([*chain.from_iterable(e.weights for e in examples)], dtype=np.float64))
        np.save(folder / "offsets.npy", np.cumsum([0, *(len(e.rows) for e in examples)], dtype=np.int64))


def open_selection(store: Store, loss: Loss, rollouts: str) -> Examples:
    """Map a stored selection into memory; make it if it is not there."""
    key = _key(loss, rollouts)
    if not store.has_folder(SELECTIONS, key):
        columns = [field.name for field in SCHEMAS["rollouts"] if field.name not in _LONG]
        table = store.read_rows("rollouts", rollouts, columns, {"split": "train"})
        keep_selection(store, loss, rollouts, loss.select(table).examples)
    folder = store.stored(SELECTIONS, key)
    return Examples(*(_mapped(folder, name) for name in _ARRAYS))


def open_behaviour(store: Store, rollouts: str, tokens_at: AnyPath, tokens: RolloutTokens) -> np.ndarray:
    """Map the log-probabilities that came with the rollouts into memory (``behaviour_logprobs``); make the file if it
    is not there.
    """
    key = content_key("behaviour", rollouts, Path(tokens_at).name)
    if not store.has_folder(BEHAVIOUR, key):
        columns = pa.schema([SCHEMAS["rollouts"].field(name) for name in ("prompt_id", "sample", "split", "logprobs")])
        table = store.read_unit("rollouts", rollouts, columns)
        flat = behaviour_logprobs(table.filter(pc.equal(table["split"], "train")), tokens)
        with store.making(BEHAVIOUR, key) as folder:
            np.save(folder / "logprobs.npy", flat)
    return _mapped(store.stored(BEHAVIOUR, key), "logprobs")


def _key(loss: Loss, rollouts: str) -> str:
    return unit_key(loss.revision, "selection", loss, rollouts)


def _mapped(folder: AnyPath, name: str) -> np.ndarray:
    return np.load(Path(folder) / f"{name}.npy", mmap_mode="r", allow_pickle=False)
