"""Tokenised rollouts on disk, memory-mapped by every worker that reads them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from raygeo.errors import DataError
from raygeo.generation.renderer import Renderer
from raygeo.models.batches import TokenSequence
from raygeo.store import AnyPath


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

    def __getitem__(self, row: int) -> TokenSequence:
        start, end = self.offsets[row], self.offsets[row + 1]
        return TokenSequence(np.asarray(self.ids[start:end], dtype=np.int64), int(self.prompt_lengths[row]))

    @classmethod
    def encode(cls, renderer: Renderer, rows: Iterable[tuple[str, str, bool]]) -> "RolloutTokens":
        """Tokenise (prompt, completion, ended) rows; ``ended`` completions get an end."""
        return cls.of([renderer.encode(prompt, completion, ended=ended) for prompt, completion, ended in rows])

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> "RolloutTokens":
        """Lay sequences out one after the other."""
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        return cls(
            np.concatenate([s.ids for s in sequences]).astype(np.int32),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.array([s.prompt_length for s in sequences], dtype=np.int64),
        )

    def save(self, folder: Path) -> None:
        """Write three ``.npy`` files."""
        write_tokens(folder, self.lengths, self.prompt_lengths, [self.ids])

    @classmethod
    def open(cls, folder: AnyPath) -> "RolloutTokens":
        """Map the files of ``save`` into memory."""
        ids, offsets, prompt_lengths = (
            np.load(Path(folder) / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("ids", "offsets", "prompt_lengths")
        )
        return cls(ids, np.asarray(offsets), np.asarray(prompt_lengths))


def write_tokens(folder: Path, lengths: np.ndarray, prompt_lengths: np.ndarray, blocks: Iterable[np.ndarray]) -> None:
    """Write the files of ``RolloutTokens`` from ids that come in ``blocks``, one after the other, of any size.

    ``lengths`` [N] and ``prompt_lengths`` [N] are those of the sequences.

    Raises:
        DataError: the blocks do not hold as many ids as the sequences.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "prompt_lengths.npy", np.asarray(prompt_lengths, dtype=np.int64))
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False}
    with (folder / "ids.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (int(offsets[-1]),)})
        written = 0
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=np.int32).data)
            written += len(block)
    if written != offsets[-1]:
        raise DataError(f"{written} token ids were written for sequences of {offsets[-1]} tokens in all")
