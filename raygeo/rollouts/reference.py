"""Log-probabilities of the base student on every rollout token, computed once a study for the losses that need them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from raygeo.errors import DataError
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.encoding import collate, length_buckets
from raygeo.students.likelihood import token_logprobs
from raygeo.students.loading import default_device, load_student
from raygeo.workload import Rows, Task, Workload

REFERENCE_FILE = "logprobs.npy"


class ReferenceSettings(Settings):
    """How the reference pass is batched; part of its key only where it can change a bit of the result."""

    batch_size: int = Field(32, ge=1)
    """Sequences per forward pass."""
    rows_per_task: int = Field(256, ge=1)
    """Rows per unit of work."""


class ReferenceLogprobs(Workload):
    """One task a slice of rows -> table ``reference``: ``logprobs`` [completion tokens] fp32 for each row.

    The base computes in ``dtype``, that of the runs which use the table: otherwise a policy equal to the base would
    differ from it by rounding, a margin that no training made.
    """

    name = "reference log-probabilities"
    tables = ("reference",)

    def __init__(
        self, settings: ReferenceSettings, base: AnyPath, tokens: AnyPath, key: str, dtype: torch.dtype = torch.float32
    ):
        self.settings, self.base, self.tokens, self.key, self.dtype = settings, base, tokens, key, dtype

    def tasks(self) -> list[Task]:
        """Slices of ``rows_per_task`` rows, costed by their tokens."""
        tokens, size = RolloutTokens.open(self.tokens), self.settings.rows_per_task
        return [
            Task(
                content_key("reference", self.key, self.settings, str(self.dtype), start),
                float(tokens.lengths[start : start + size].sum()),
                (start, min(start + size, len(tokens))),
                f"rows {start} to {min(start + size, len(tokens))}",
            )
            for start in range(0, len(tokens), size)
        ]

    def setup(self) -> Any:
        """The base model, its tokenizer's pad id and the mapped tokens."""
        model, tokenizer = load_student(self.base, dtype=self.dtype, device=default_device())
        return model, tokenizer.pad_token_id, RolloutTokens.open(self.tokens)

    def compute(self, state: Any, payload: Any) -> dict[str, Rows]:
        """Log-probabilities of the slice's rows, in row order."""
        model, pad_id, tokens = state
        start, end = payload
        rows: Rows = [{} for _ in range(start, end)]
        for bucket in length_buckets(tokens.lengths[start:end].tolist(), self.settings.batch_size):
            batch = collate([tokens[start + i] for i in bucket], pad_id).to(model.device)
            with torch.inference_mode():
                logprobs = token_logprobs(model, batch).cpu()
            mask = batch.mask.cpu()
            for place, i in enumerate(bucket):
                rows[i] = {"row": start + i, "logprobs": logprobs[place][mask[place]].numpy()}
        return {"reference": rows}


def save_reference(table: pa.Table, tokens: RolloutTokens, folder: Path) -> None:
    """Write the ``reference`` table as one flat fp32 array in row order, aligned with ``tokens.completion_offsets``.

    Raises:
        DataError: a row is missing or its length does not match the tokens.
    """
    table = table.sort_by("row")
    lengths = table["logprobs"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    if not np.array_equal(table["row"].to_numpy(), np.arange(len(tokens))) or not np.array_equal(
        lengths, tokens.completion_lengths
    ):
        raise DataError(
            f"the reference table has {table.num_rows} rows that do not match the {len(tokens)} tokenised rollouts; "
            "delete the store's units/reference folder and run the study again."
        )
    flat = table["logprobs"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    np.save(folder / REFERENCE_FILE, flat)


def open_reference(folder: AnyPath) -> np.ndarray:
    """Map the flat array of ``save_reference`` into memory."""
    return np.load(Path(folder) / REFERENCE_FILE, mmap_mode="r", allow_pickle=False)
