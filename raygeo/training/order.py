"""Which examples each optimiser step sees: one seeded order of the rollout rows, shared by all losses."""

import math
from collections.abc import Sequence

import numpy as np

from raygeo.losses.base import Example


def step_count(examples: int, batch_size: int, steps: int | None, epochs: float | None) -> int:
    """Optimiser steps for ``examples`` examples: ``steps`` itself, or enough to see ``epochs`` (default one) passes."""
    return steps if steps is not None else max(1, math.ceil((epochs or 1.0) * examples / batch_size))


def step_batches(examples: Sequence[Example], rows: int, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """Example indices of every step: [steps, batch_size] int64.

    In epoch ``e`` all ``rows`` rollout rows are permuted by ``default_rng([seed, e])``, and the examples follow the
    position of their first row. So two losses that select different rows still see those they share in the same
    relative order. A batch runs over the end of an epoch into the next one.
    """
    first = np.array([example.rows[0] for example in examples], dtype=np.int64)
    stream: list[np.ndarray] = []
    epochs = math.ceil(steps * batch_size / len(examples))
    for epoch in range(epochs):
        position = np.random.default_rng([seed, epoch]).permutation(rows)
        stream.append(np.argsort(position[first], kind="stable"))
    return np.concatenate(stream)[: steps * batch_size].reshape(steps, batch_size)


def micro_batches(batch: np.ndarray, lengths: np.ndarray, micro_batch: int, rank: int, world: int) -> list[np.ndarray]:
    """Split one step's examples into this rank's micro-batches, each of similar lengths; all ranks get equally many.

    ``lengths`` [len(batch)] are the examples' token lengths. Some groups are empty when there are fewer examples than
    ranks times micro-steps.
    """
    micro_steps = math.ceil(len(batch) / (micro_batch * world))
    order = batch[np.argsort(lengths, kind="stable")]
    groups = np.array_split(order, micro_steps * world)
    return groups[rank::world]


def token_batches(
    batch: np.ndarray, tokens: np.ndarray, micro_batch: int, micro_tokens: int, rank: int, world: int
) -> list[np.ndarray]:
    """Split one step's examples into this rank's micro-batches of at most ``micro_tokens`` tokens and ``micro_batch``
    examples; all ranks get equally many, of similar size.

    ``tokens`` [len(batch)] are the examples' tokens, all rows together. The largest first, each goes to the first
    micro-batch with room for it (first fit decreasing); one larger than ``micro_tokens`` has a micro-batch of its own.
    Some groups are empty where their number is no multiple of the ranks'.
    """
    groups: list[list[int]] = []
    loads: list[int] = []
    for place in np.argsort(-tokens, kind="stable").tolist():
        size = int(tokens[place])
        fits = (i for i, load in enumerate(loads) if load + size <= micro_tokens and len(groups[i]) < micro_batch)
        if (found := next(fits, None)) is None:
            found = len(groups)
            groups.append([])
            loads.append(0)
        groups[found].append(place)
        loads[found] += size
    groups += [[] for _ in range(-len(groups) % world)]
    return [batch[np.array(group, dtype=np.int64)] for group in groups[rank::world]]
