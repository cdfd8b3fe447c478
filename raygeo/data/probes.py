"""The fixed sequences on which one named scalar is defined: token-mean negative log-likelihood of their completions."""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raygeo.errors import DataError, StoreError
from raygeo.generation.renderer import renderer_for
from raygeo.models.batches import Batch, TokenSequence, collate, length_buckets
from raygeo.models.likelihood import token_logprobs
from raygeo.store import AnyPath

HELDOUT_SEQUENCES = 256
"""Most held-out solutions whose likelihood is measured while training."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Tokenised sequences shared by every model that is compared; ``name`` labels them in tables.

    Raises:
        DataError: there is no sequence, or one has an empty prompt or an empty completion.
    """

    name: str
    sequences: list[TokenSequence]

    def __post_init__(self) -> None:
        if not self.sequences:
            raise DataError(f"probe {self.name!r} has no sequences; give it at least one prompt with a completion.")
        for row, s in enumerate(self.sequences):
            if not 1 <= s.prompt_length < len(s):
                raise DataError(
                    f"probe {self.name!r}: sequence {row} has {s.prompt_length} prompt tokens of {len(s)}; "
                    "both the prompt and the completion need at least one token."
                )

    @classmethod
    def of(cls, texts: Sequence[tuple[str, str]], tokenizer: Any, name: str = "texts") -> "Probe":
        """Tokenise pairs of a prompt and a completion, as a study does; every completion ends in end-of-text.

        Raises:
            DataError: there is no text, or one has an empty prompt or an empty completion.
        """
        renderer = renderer_for(tokenizer)
        return cls(name, [renderer.encode(*text) for text in texts])

    @property
    def tokens(self) -> int:
        """Number of completion tokens, the denominator of the mean."""
        return sum(s.completion_length for s in self.sequences)

    @cached_property
    def key(self) -> str:
        """16 hex digits of SHA-256 over token ids and prompt lengths, in order; the name has no part in it."""
        digest = hashlib.sha256()
        for array in self._arrays().values():
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def order(self, batch_size: int) -> list[list[int]]:
        """Indices of the sequences in each batch of ``batches``: similar lengths together, the shortest first."""
        return length_buckets([len(s) for s in self.sequences], batch_size)

    def batches(self, pad_id: int = 0, batch_size: int = 16) -> list[Batch]:
        """Batches of at most ``batch_size`` sequences, in the order of ``order``, padded on the right.

        Neither argument has an effect beyond rounding: no token of a causal model looks at what follows it.
        """
        return [collate([self.sequences[i] for i in rows], pad_id) for rows in self.order(batch_size)]

    def save(self, path: AnyPath) -> None:
        """Write one ``.npz`` file, without pickles."""
        with open(path, "wb") as file:
            np.savez(file, allow_pickle=False, name=np.array(self.name), **self._arrays())

    @classmethod
    def load(cls, path: AnyPath) -> "Probe":
        """Read what ``save`` wrote.

        Raises:
            StoreError: the file is missing, damaged or no probe.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                name, ids = str(file["name"]), file["ids"]
                ends, prompts = np.cumsum(file["lengths"]), file["prompt_lengths"]
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise StoreError(f"{path} is not a readable probe ({error}); delete it and run the study again.") from error
        parts = np.split(ids, ends[:-1])
        return cls(name, [TokenSequence(part, int(prompt)) for part, prompt in zip(parts, prompts, strict=True)])

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "lengths": np.array([len(s) for s in self.sequences], dtype=np.int64),
            "prompt_lengths": np.array([s.prompt_length for s in self.sequences], dtype=np.int64),
            "ids": np.concatenate([s.ids for s in self.sequences]),
        }


@torch.no_grad()
def nll(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Token-mean negative log-likelihood in nats: the sum over all completion tokens divided by their number.

    The sum is taken in fp64; the mean of batch means is never used. The model is put in eval mode.
    """
    sums, tokens = zip(*(_batch_nlls(model, batch) for batch in batches), strict=True)
    return float(torch.cat(sums).sum() / torch.cat(tokens).sum())


@torch.no_grad()
def sequence_nlls(model: nn.Module, batches: Sequence[Batch], order: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood of each sequence, [N] fp64 in nats, and its completion tokens, [N] int64.

    Both are on the CPU, in the probe's own order; ``order`` is ``Probe.order`` for the batch size of ``batches``. The
    model is put in eval mode.
    """
    sums, tokens = zip(*(_batch_nlls(model, batch) for batch in batches), strict=True)
    positions = torch.tensor([i for rows in order for i in rows])
    back = torch.argsort(positions)
    return torch.cat(sums)[back], torch.cat(tokens)[back]


def _batch_nlls(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    model.eval()
    logprobs = token_logprobs(model, batch.to(next(model.parameters()).device))
    return -logprobs.double().sum(-1).cpu(), batch.mask.sum(-1).cpu()
