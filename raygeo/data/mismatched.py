"""Prompts with completions that answer other prompts: what KTO estimates its KL baseline from."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from raygeo.data.tokens import RolloutTokens, write_tokens
from raygeo.errors import DataError

REVISION = 1
"""Counts the ways rows have been matched; part of the key of what is made of them."""


def mismatch(tokens: RolloutTokens, prompt_ids: Sequence[str], max_tokens: int | None) -> RolloutTokens:
    """Give row i's prompt the completion of the next row, cyclically, that belongs to another prompt.

    ``prompt_ids`` name each row's prompt. Completions are cut where both together exceed ``max_tokens``, if
    there is such a limit.

    Raises:
        DataError: all rows belong to one prompt.
    """
    others = _others(prompt_ids)
    ids = np.concatenate(list(_joined(tokens, others, max_tokens)))
    offsets = np.concatenate([[0], np.cumsum(_lengths(tokens, others, max_tokens))])
    return RolloutTokens(ids, offsets, tokens.prompt_lengths)


def save_mismatched(tokens: RolloutTokens, prompt_ids: Sequence[str], max_tokens: int | None, folder: Path) -> None:
    """Write what ``mismatch`` gives to a folder, a row at a time.

    Raises:
        DataError: all rows belong to one prompt.
    """
    others = _others(prompt_ids)
    lengths = _lengths(tokens, others, max_tokens)
    write_tokens(folder, lengths, tokens.prompt_lengths, _joined(tokens, others, max_tokens))


def _others(prompt_ids: Sequence[str]) -> np.ndarray:
    """The next row of another prompt, cyclically, for each row: [N]."""
    prompts = np.unique(np.asarray(prompt_ids), return_inverse=True)[1]
    starts = np.flatnonzero(prompts != np.roll(prompts, 1))
    if not len(starts):
        raise DataError(
            f"all {len(prompts)} rollouts answer one prompt, so no completion of another can be put behind it; "
            "KTO needs at least two prompts."
        )
    return starts[np.searchsorted(starts, np.arange(len(prompts)), "right") % len(starts)]


def _lengths(tokens: RolloutTokens, others: np.ndarray, max_tokens: int | None) -> np.ndarray:
    lengths = tokens.prompt_lengths + tokens.completion_lengths[others]
    return lengths if max_tokens is None else np.minimum(lengths, max_tokens)


def _joined(tokens: RolloutTokens, others: np.ndarray, max_tokens: int | None) -> Iterator[np.ndarray]:
    for row, other in enumerate(others.tolist()):
        own, foreign = tokens[row], tokens[other]
        joined = np.concatenate([own.ids[: own.prompt_length], foreign.ids[foreign.prompt_length :]])[:max_tokens]
        yield joined.astype(np.int32)
