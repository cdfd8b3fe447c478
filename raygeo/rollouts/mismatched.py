"""Prompts with completions that answer other prompts: what KTO estimates its KL baseline from."""

from collections.abc import Sequence

import numpy as np

from raygeo.errors import DataError
from raygeo.rollouts.tokens import RolloutTokens


def mismatch(tokens: RolloutTokens, prompt_ids: Sequence[str], max_tokens: int) -> RolloutTokens:
    """Give row i's prompt the completion of the next row, cyclically, that belongs to another prompt.

    ``prompt_ids`` name each row's prompt. Completions are cut where prompt and completion exceed ``max_tokens``.

    Raises:
        DataError: all rows belong to one prompt.
    """
    count = len(tokens)
    parts, prompt_lengths = [], []
    for row in range(count):
        other = next(
            (o for o in ((row + step) % count for step in range(1, count)) if prompt_ids[o] != prompt_ids[row]), None
        )
        if other is None:
            raise DataError(
                f"all {count} rollouts answer one prompt, so no completion of another can be put behind it; "
                "KTO needs at least two prompts."
            )
        own, foreign = tokens[row], tokens[other]
        joined = np.concatenate([own.ids[: own.prompt_length], foreign.ids[foreign.prompt_length :]])[:max_tokens]
        parts.append(joined.astype(np.int32))
        prompt_lengths.append(own.prompt_length)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return RolloutTokens(np.concatenate(parts), offsets, np.array(prompt_lengths, dtype=np.int64))
