"""What a teacher would have written at every completion token: its likeliest tokens, and what it leaves to all others.

A teacher's row is kept as ``2 k + 1`` numbers of four bytes a completion token: k token ids, their k log-probabilities
in fp32, and the probability of all other tokens. Tokens lie one behind the other, as ``completion_offsets`` index them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygeo.data.reference import ReferenceSettings, TokenFiles, TokenPass, open_parts
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DataError, StudentError
from raygeo.models.batches import Batch
from raygeo.models.likelihood import TopLogprobs, completion_states, top_logprobs
from raygeo.models.loading import Loading
from raygeo.settings import AnyPlace
from raygeo.store import AnyPath, Store
from raygeo.tables import SCHEMAS
from raygeo.workload import Rows, Task

TEACHER_TOP = "teacher_top"
TOP_COLUMNS = ("top_ids", "top_logprobs", "top_tail")
"""The columns of rollouts that hold a teacher's likeliest tokens."""
BATCH_ROWS = 64
"""Rollouts whose likeliest tokens are held at once."""
_PROBED = 512
"""Tokens that the text is made of by which tokenizers are compared."""
_NAMED = 3


class TeacherSettings(Loading):
    """A model whose next-token laws are learned from, and how it is held while it is asked."""

    model: AnyPlace = "builtin"
    """A local folder, a hub id, ``student`` (the student as it starts), or ``builtin``: the teacher that comes with
    ``builtin:word-problems``."""
    top_k: int = Field(64, ge=1)
    """How many of its likeliest tokens are kept at each token; as many as the vocabulary has keep the whole law."""


class TeacherTop(TokenPass):
    """One task a slice of rollout rows -> a file of the teacher's likeliest tokens, by teacher forcing.

    The teacher reads the student's own tokens, prompt and completion. Its law is over the ``width`` tokens that the
    student has: further rows of its head are left out before the softmax. All files go to the store's folder
    ``teacher_top/<folder_key>``, which the caller completes when all tasks are done; table ``teacher_top`` has one row
    a file. They take completion tokens x (2 ``top_k`` + 1) x 4 bytes: 2.6 GB for 10,000 rows of 500 tokens and 64.
    """

    name = "teacher's likeliest tokens"
    tables: ClassVar = {"teacher_top": SCHEMAS["teacher_top"]}

    def __init__(
        self,
        settings: ReferenceSettings,
        teacher: AnyPath,
        tokens: AnyPath,
        source: str,
        store: Store,
        top_k: int,
        width: int,
        loading: Loading,
    ):
        dtype = torch.bfloat16 if loading.dtype == "bf16" else torch.float32
        super().__init__(settings, teacher, tokens, source, dtype, loading)
        self.store, self.top_k, self.width = store, top_k, width
        self.folder_key = self.key(settings, source, str(dtype))
        """Key of the folder in the store: of all that can change a bit of its files, or their division."""

    def tasks(self) -> list[Task]:
        """Slices of ``rows_per_task`` rows, costed by their tokens.

        Raises:
            DataError: their files would not fit on the store's disk.
        """
        free, tokens = self.store.free_bytes(), int(RolloutTokens.open(self.tokens).completion_offsets[-1])
        planned, there = tokens * row_bytes(self.top_k), self.store.folder_bytes(TEACHER_TOP, self.folder_key)
        if free is not None and planned - there > free:
            raise DataError(
                f"the teacher's {self.top_k} likeliest tokens at {tokens:,} completion tokens take "
                f"{planned / 2**30:,.1f} GiB, of which {there / 2**30:,.1f} are there; {free / 2**30:,.1f} GiB are "
                f"free at {self.store.location}. Lower teacher.top_k, read fewer or shorter rollouts, or put the store "
                "on a larger disk (store)."
            )
        return super().tasks()

    def of_completions(self, model: Any, batch: Batch) -> Tensor:
        """The packed rows of ``pack``: [N, 2 k + 1] int32."""
        states = completion_states(model, batch)
        return pack(top_logprobs(model, states, self.top_k, width=self.width))

    def compute(self, state: Any, payload: Any) -> dict[str, Rows]:
        """Write the file of the slice, named after its first completion token."""
        start, end = payload
        packed = torch.cat(self.by_row(state, start, end)).numpy()
        if not np.isfinite(packed[:, packed.shape[1] // 2 :].view(np.float32)).all():
            raise StudentError("the teacher's log-probabilities hold NaN or infinity; choose another teacher.")
        first = int(state[2].completion_offsets[start])
        with self.store.scratch_folder() as folder:
            np.save(folder / f"{first:015d}.npy", packed)
            self.store.add_to_folder(TEACHER_TOP, self.folder_key, folder)
        row = {"row": start, "rows": end - start, "token": first, "tokens": len(packed), "tail": tail_of(packed)}
        return {"teacher_top": [row]}


class TeacherTopFile(TokenFiles):
    """A teacher's likeliest tokens at all completion tokens, in row order, memory-mapped from packed files."""

    @property
    def count(self) -> int:
        """How many tokens are kept at each, k."""
        return self.parts[0].shape[1] // 2

    def rows(self, start: int, end: int) -> TopLogprobs:
        """Those of completion tokens ``start`` to ``end`` (``tokens.completion_offsets``), copied.

        Raises:
            DataError: there are not so many tokens.
        """
        if not 0 <= start <= end <= len(self):
            raise DataError(
                f"a teacher's likeliest tokens at completion tokens {start} to {end} were asked for, but the store's "
                f"{TEACHER_TOP} folder holds {len(self)}; delete that folder and units/{TEACHER_TOP} and run the study "
                "again."
            )
        packed = self.entries(start, end)
        k = self.count
        numbers = np.ascontiguousarray(packed[:, k:]).view(np.float32)
        return TopLogprobs(
            torch.from_numpy(packed[:, :k].astype(np.int64)),
            torch.from_numpy(numbers[:, :k].copy()),
            torch.from_numpy(numbers[:, k].copy()),
        )


def pack(top: TopLogprobs) -> Tensor:
    """Put ids and the bits of log-probabilities and tail side by side: [N, 2 k + 1] int32."""
    bits = (part.float().contiguous().view(torch.int32) for part in (top.logprobs, top.tail[:, None]))
    return torch.cat([top.ids.to(torch.int32), *bits], dim=1)


def row_bytes(top_k: int) -> int:
    """What a completion token takes on disk."""
    return 4 * (2 * top_k + 1)


def tail_of(packed: np.ndarray) -> float:
    """The tails of packed rows, added up."""
    return float(np.ascontiguousarray(packed[:, -1]).view(np.float32).sum(dtype=np.float64))


def open_teacher_top(folder: AnyPath) -> TeacherTopFile:
    """Map the packed files in a folder into memory.

    Raises:
        DataError: there is none, or one is missing between them.
    """
    return TeacherTopFile(open_parts(folder, "a teacher's likeliest tokens", TEACHER_TOP))


def save_teacher_top(tables: Iterable[pa.Table], tokens: RolloutTokens, width: int, folder: Path) -> float:
    """Write the columns ``TOP_COLUMNS`` of rollouts, in the order of ``tokens``, as one packed file; return its tails'
    sum.

    One of ``tables`` is held at a time. ``width`` is the size of the student's vocabulary; where it is k, no tail is
    left.

    Raises:
        DataError: a row has none, or not for each of its completion tokens; rows have different numbers of likeliest
            tokens; or an id is not one of the student's.
    """
    row, total, packed, k = 0, 0.0, None, 0
    for table in tables:
        columns = [table[name].combine_chunks() for name in TOP_COLUMNS]
        sizes = [column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False) for column in columns]
        held = slice(row, row + len(table))
        lengths = tokens.completion_lengths[held]
        if wrong := [row + int(i) for i in np.flatnonzero(sizes[2] != lengths)]:
            named = ", ".join(f"row {i}" for i in wrong[:_NAMED])
            raise DataError(
                f"rollouts lack a teacher's likeliest tokens, or hold another number of them than completion tokens, "
                f"end-of-text included ({named}, ...). Give a teacher (teacher: {{model: ...}}), sample with "
                "rollouts.sample.decoding.top_logprobs from a teacher with the student's tokenizer, or name the fields "
                "that hold them (top_ids, top_logprobs, top_tail)."
            )
        if not len(table):
            continue
        k = k or int(sizes[0][0] // max(1, lengths[0]))
        if (sizes[0] != k * lengths).any() or k < 1:
            raise DataError(f"rollouts {row} to {held.stop} do not all hold {k} likeliest tokens at each token.")
        if packed is None:
            shape = (int(tokens.completion_offsets[-1]), 2 * k + 1)
            packed = np.lib.format.open_memmap(folder / f"{0:015d}.npy", "w+", np.int32, shape)
        ids, logprobs, tail = (column.flatten().to_numpy(zero_copy_only=False) for column in columns)
        if ids.min() < 0 or ids.max() >= width:
            odd = int(ids.max() if ids.max() >= width else ids.min())
            raise DataError(
                f"a teacher's likeliest tokens hold the id {odd}, and the student has ids from 0 to {width - 1}: they "
                "are of another tokenizer. A teacher and its student must share one."
            )
        start, end = tokens.completion_offsets[row], tokens.completion_offsets[row + len(table)]
        packed[start:end, :k] = ids.reshape(-1, k)
        packed[start:end, k : 2 * k] = logprobs.reshape(-1, k).view(np.int32)
        tail = np.zeros_like(tail) if k == width else tail
        packed[start:end, 2 * k] = tail.view(np.int32)
        total += float(tail.sum(dtype=np.float64))
        row += len(table)
    if packed is None or row != len(tokens):
        raise DataError(f"{row} rollouts were read for {len(tokens)} tokenised ones; run the study again.")
    packed.flush()
    return total


def refuse_other_tokens(student: Any, teacher: Any, name: str) -> None:
    """See that two tokenizers have one vocabulary, and make the same tokens of a text.

    Raises:
        StudentError: they do not; ``name`` is the teacher's.
    """
    own, other = student.get_vocab(), teacher.get_vocab()
    if own != other:
        differing = sorted(token for token in own.keys() | other.keys() if own.get(token) != other.get(token))
        token = differing[0]
        raise StudentError(
            f"the teacher {name} does not share the student's tokenizer: of {len(own)} tokens of the student's and "
            f"{len(other)} of the teacher's {len(differing)} differ (such as {token!r}: id {own.get(token)} in the "
            f"student's, {other.get(token)} in the teacher's), so its probabilities cannot stand beside the student's. "
            "Choose a teacher of the student's family."
        )
    text = student.decode(sorted(own.values())[:: max(1, len(own) // _PROBED)], skip_special_tokens=True)
    if student(text, add_special_tokens=False).input_ids != teacher(text, add_special_tokens=False).input_ids:
        raise StudentError(
            f"the teacher {name} has the student's vocabulary, but cuts texts into other tokens. Choose a teacher of "
            "the student's family."
        )
