"""What the base student says of every rollout token, computed once a study for the losses that need it."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DataError
from raygeo.models.batches import Batch, collate, length_buckets
from raygeo.models.likelihood import completion_states, token_logprobs
from raygeo.models.loading import Loading, read_config
from raygeo.settings import Settings
from raygeo.store import AnyPath, Store
from raygeo.tables import SCHEMAS
from raygeo.workload import Rows, Task, Workload

REFERENCE_FILE = "logprobs.npy"
REFERENCE_STATES = "reference_states"
_DEFAULT = Loading()


class ReferenceSettings(Settings):
    """How the reference pass is batched; part of its key only where it can change a bit of the result."""

    batch_size: int = Field(32, ge=1)
    """Sequences per forward pass."""
    rows_per_task: int = Field(256, ge=1)
    """Rows per unit of work."""


class TokenPass(Workload):
    """One task a slice of rollout rows through a model, the base, which computes in ``dtype``.

    ``dtype`` and the attention of ``loading`` are those of the runs which use the result: otherwise a policy equal to
    the base would differ from it by rounding, a margin that no training made. ``source`` is the content key of the
    base, how it is held (``loading``, whose own dtype does not count), and the tokens.
    """

    batch_settings: ClassVar = ("batch_size",)

    def __init__(
        self,
        settings: ReferenceSettings,
        base: AnyPath,
        tokens: AnyPath,
        source: str,
        dtype: torch.dtype = torch.float32,
        loading: Loading = _DEFAULT,
    ):
        self.settings, self.base, self.tokens, self.source, self.dtype = settings, base, tokens, source, dtype
        self.loading = loading

    @abstractmethod
    def of_completions(self, model: Any, batch: Batch) -> Tensor:
        """What is wanted of each completion token of the batch, in row order: [N, ...]."""

    def tasks(self) -> list[Task]:
        """Slices of ``rows_per_task`` rows, costed by their tokens."""
        tokens, size = RolloutTokens.open(self.tokens), self.settings.rows_per_task
        return [
            Task(
                self.key(self.settings, self.source, str(self.dtype), start),
                float(tokens.lengths[start : start + size].sum()),
                (start, min(start + size, len(tokens))),
                f"rows {start} to {min(start + size, len(tokens))}",
            )
            for start in range(0, len(tokens), size)
        ]

    def setup(self) -> Any:
        """The base model, its tokenizer's pad id and the mapped tokens."""
        model, tokenizer = self.loading.load(self.base, dtype=self.dtype)
        return model, tokenizer.pad_token_id, RolloutTokens.open(self.tokens)

    def by_row(self, state: Any, start: int, end: int) -> list[Tensor]:
        """``of_completions`` of each row from ``start`` to ``end``, in row order, on the CPU."""
        model, pad_id, tokens = state
        found: dict[int, Tensor] = {}
        for bucket in length_buckets(tokens.lengths[start:end].tolist(), self.settings.batch_size):
            rows = [start + i for i in bucket]
            batch = collate([tokens[row] for row in rows], pad_id).to(model.device)
            with torch.inference_mode():
                values = self.of_completions(model, batch).cpu()
            found |= zip(rows, values.split(tokens.completion_lengths[rows].tolist()), strict=True)
        return [found[row] for row in range(start, end)]


class ReferenceLogprobs(TokenPass):
    """One task a slice of rows -> table ``reference``: ``logprobs`` [completion tokens] fp32 for each row."""

    name = "reference log-probabilities"
    tables: ClassVar = {"reference": SCHEMAS["reference"]}

    def of_completions(self, model: Any, batch: Batch) -> Tensor:
        """Log-probabilities: [N]."""
        return token_logprobs(model, batch)[batch.mask]

    def compute(self, state: Any, payload: Any) -> dict[str, Rows]:
        """Log-probabilities of the slice's rows, in row order."""
        values = self.by_row(state, *payload)
        return {"reference": [{"row": payload[0] + i, "logprobs": row.numpy()} for i, row in enumerate(values)]}


class ReferenceStates(TokenPass):
    """One task a slice of rows -> a file of final hidden states [completion tokens, d] of the base.

    The base's head turns them into its logits over the vocabulary, without its body in the training worker. All files
    go to the store's folder ``reference_states/<folder_key>``, which the caller completes when all tasks are done;
    ``open_reference_states`` reads it. Table ``reference_states`` has one row a file. States are kept in fp32 or, where
    the base computes in bf16, exactly as they are, in two bytes.

    On disk they take completion tokens x d x 4 or 2 bytes: 1 GB for 1,000 rows of 500 tokens of d = 1024 in bf16, and
    192 GB for 75,000 such rows of d = 2560. Runs with adapters need none of it (``RunSpec.asks_base``).
    """

    name = "reference states"
    tables: ClassVar = {"reference_states": SCHEMAS["reference_states"]}

    def __init__(
        self,
        settings: ReferenceSettings,
        base: AnyPath,
        tokens: AnyPath,
        source: str,
        store: Store,
        dtype: torch.dtype = torch.float32,
        loading: Loading = _DEFAULT,
    ):
        super().__init__(settings, base, tokens, source, dtype, loading)
        self.store = store
        self.folder_key = self.key(settings, source, str(dtype))
        """Key of the folder in the store: of all that can change a bit of its files, or their division."""

    def tasks(self) -> list[Task]:
        """Slices of ``rows_per_task`` rows, costed by their tokens.

        Raises:
            DataError: their files would not fit on the store's disk.
        """
        self._check_room()
        return super().tasks()

    def _check_room(self) -> None:
        free = self.store.free_bytes()
        if free is None:
            return
        tokens, width = (
            int(RolloutTokens.open(self.tokens).completion_offsets[-1]),
            read_config(self.base).get_text_config().hidden_size,
        )
        size = 2 if self.dtype == torch.bfloat16 else 4
        planned, there = tokens * width * size, self.store.folder_bytes(REFERENCE_STATES, self.folder_key)
        if planned - there > free:
            raise DataError(
                f"the base's final states of {tokens:,} completion tokens take {planned / 2**30:,.1f} GiB ({width:,} x "
                f"{size} bytes a token), of which {there / 2**30:,.1f} are there; {free / 2**30:,.1f} GiB are free at "
                f"{self.store.location}. Train adapters (training.lora), whose runs ask the base in each step and "
                "store nothing of it; or leave out the losses that need the base's whole logits (`raygeo losses` says "
                "which), read fewer or shorter rollouts (limit of a reader, rollouts.max_tokens), or put the store on "
                "a larger disk (store)."
            )

    def of_completions(self, model: Any, batch: Batch) -> Tensor:
        """Final hidden states: [N, d]."""
        return completion_states(model, batch)

    def compute(self, state: Any, payload: Any) -> dict[str, Rows]:
        """Write the file of the slice, named after its first completion token."""
        start, end = payload
        states = torch.cat(self.by_row(state, start, end))
        bits = states.view(torch.uint16) if states.dtype == torch.bfloat16 else states.float()
        first = int(state[2].completion_offsets[start])
        with self.store.scratch_folder() as folder:
            np.save(folder / f"{first:015d}.npy", bits.numpy())
            self.store.add_to_folder(REFERENCE_STATES, self.folder_key, folder)
        return {"reference_states": [{"row": start, "rows": end - start, "token": first, "tokens": len(states)}]}


class TokenFiles:
    """An array with an entry for each completion token, in row order, in ``parts`` that are memory-mapped."""

    def __init__(self, parts: list[np.ndarray]):
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def entries(self, start: int, end: int) -> np.ndarray:
        """A copy of the entries of completion tokens ``start`` to ``end`` (``tokens.completion_offsets``)."""
        return np.concatenate(
            [
                part[max(start - first, 0) : max(end - first, 0)]
                for part, first in zip(self.parts, self.starts, strict=False)
            ]
        )


def open_parts(folder: AnyPath, what: str, units: str) -> list[np.ndarray]:
    """Map the files in a folder, each named after its first completion token; of ``what``, noted in the ``units``.

    Raises:
        DataError: there is none, or one is missing between them.
    """
    files = sorted(Path(folder).glob("*.npy"))
    parts = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
    starts = np.cumsum([0, *(len(part) for part in parts)])[:-1]
    if not files or [int(file.stem) for file in files] != starts.tolist():
        raise DataError(
            f"{folder} holds {len(files)} files of {what} that do not follow each other; delete it and the store's "
            f"units/{units} folder and run the study again."
        )
    return parts


class ReferenceStatesFile(TokenFiles):
    """The states of all completion tokens, in row order, memory-mapped from the files of ``ReferenceStates``."""

    def rows(self, start: int, end: int) -> Tensor:
        """States of completion tokens ``start`` to ``end`` (``tokens.completion_offsets``): [end - start, d].

        They come as a copy in the dtype they were computed in, fp32 or bf16.

        Raises:
            DataError: there are not so many tokens.
        """
        if not 0 <= start <= end <= len(self):
            raise DataError(
                f"states of completion tokens {start} to {end} were asked for, but the store's reference_states folder "
                f"holds {len(self)}; delete that folder and units/reference_states and run the study again."
            )
        states = torch.from_numpy(self.entries(start, end))
        return states.view(torch.bfloat16) if states.dtype == torch.uint16 else states


def open_reference_states(folder: AnyPath) -> ReferenceStatesFile:
    """Map the files in a folder of ``ReferenceStates`` into memory.

    Raises:
        DataError: there is none, or one is missing between them.
    """
    return ReferenceStatesFile(open_parts(folder, "states", REFERENCE_STATES))


def save_reference(tables: Iterable[pa.Table], tokens: RolloutTokens, folder: Path) -> None:
    """Write ``reference`` tables as one flat fp32 array in row order, aligned with ``tokens.completion_offsets``.

    Every row is in one of ``tables``, in any order; one of them is held at a time.

    Raises:
        DataError: a row is missing, is there twice, or its length does not match the tokens.
    """
    offsets, lengths = tokens.completion_offsets, tokens.completion_lengths
    flat = np.lib.format.open_memmap(folder / REFERENCE_FILE, "w+", np.float32, (int(offsets[-1]),))
    seen = np.zeros(len(tokens), dtype=np.int64)
    for table in tables:
        rows = table["row"].to_numpy()
        values = table["logprobs"].combine_chunks()
        held = values.value_lengths().to_numpy(zero_copy_only=False)
        known = (rows >= 0) & (rows < len(tokens))
        np.add.at(seen, rows[known], 1)
        if not known.all() or not np.array_equal(held, lengths[rows]):
            seen[:] = 0
            break
        numbers, starts = values.flatten().to_numpy(zero_copy_only=False), np.cumsum(held) - held
        for row, start, size in zip(rows.tolist(), starts.tolist(), held.tolist(), strict=True):
            flat[offsets[row] : offsets[row] + size] = numbers[start : start + size]
    flat.flush()
    if (seen != 1).any():
        raise DataError(
            f"the reference tables do not match the {len(tokens)} tokenised rollouts, each once; delete the store's "
            "units/reference folder and run the study again."
        )


def open_reference(folder: AnyPath) -> np.ndarray:
    """Map the flat array of ``save_reference`` into memory."""
    return np.load(Path(folder) / REFERENCE_FILE, mmap_mode="r", allow_pickle=False)
