"""Tokenised rollouts on disk, memory-mapped by every worker that reads them."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np

from raygeo.store import AnyPath
from raygeo.students.encoding import Sequence, encode


class RolloutTokens:
    """Token ids of rollout rows, in row order: ``tokens[i]`` is row ``i``'s sequence.

    ``completion_lengths`` [N] int64 count the tokens a loss sees; ``offsets`` [N + 1] index the flat ids.
    """

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, prompt_lengths: np.ndarray):
        self.ids, self.offsets, self.prompt_lengths = ids, offsets, prompt_lengths
        self.lengths = np.diff(offsets)
        self.completion_lengths = self.lengths - prompt_lengths
        self.completion_offsets = np.concatenate([[0], np.cumsum(self.completion_lengths)])

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, row: int) -> Sequence:
        start, end = self.offsets[row], self.offsets[row + 1]
        return Sequence(np.asarray(self.ids[start:end], dtype=np.int64), int(self.prompt_lengths[row]))

    @classmethod
    def encode(cls, tokenizer: Any, rows: Iterable[tuple[str, str, bool]]) -> "RolloutTokens":
        """Tokenise (prompt, completion, ended) rows; ``ended`` completions get an end-of-text token."""
        return cls.of([encode(tokenizer, prompt, completion, ended=ended) for prompt, completion, ended in rows])

    @classmethod
    def of(cls, sequences: Seq[Sequence]) -> "RolloutTokens":
        """Lay sequences out one after the other."""
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        return cls(
            np.concatenate([s.ids for s in sequences]).astype(np.int32),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.array([s.prompt_length for s in sequences], dtype=np.int64),
        )

    def save(self, folder: Path) -> None:
        """Write three ``.npy`` files."""
        for name in ("ids", "offsets", "prompt_lengths"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def open(cls, folder: AnyPath) -> "RolloutTokens":
        """Map the files of ``save`` into memory."""
        ids, offsets, prompt_lengths = (
            np.load(Path(folder) / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("ids", "offsets", "prompt_lengths")
        )
        return cls(ids, np.asarray(offsets), np.asarray(prompt_lengths))
