"""From the rollout table to what losses choose from: the usable rollouts of each prompt, and counts of all others."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import pyarrow as pa

from raygeo.errors import DataError
from raygeo.losses.base import Example, Loss, Selection
from raygeo.tables import SCHEMAS


@dataclass(frozen=True)
class Group:
    """The usable rollouts of one prompt in table order; ``rewards`` are None where absent or not finite.

    ``sources`` say who wrote them. ``pairs`` are those of its rows that were given as pairs, the correct one first;
    None where none were.
    """

    rows: tuple[int, ...]
    correct: tuple[bool, ...]
    rewards: tuple[float | None, ...]
    sources: tuple[str | None, ...] = ()
    pairs: tuple[tuple[int, int], ...] | None = None

    @property
    def mixed(self) -> bool:
        """Whether some rollouts are correct and some are wrong."""
        return any(self.correct) and not all(self.correct)


@dataclass(frozen=True)
class Groups:
    """Every prompt with a usable rollout, in order of first appearance, and what was counted on the way.

    ``counts``: ``rows_seen``, ``truncated_dropped``, ``ungraded_dropped``, ``prompts``, ``mixed_prompts``,
    ``all_correct_prompts``, ``all_wrong_prompts``; and, where pairs were given, ``given_pairs`` that are whole and
    ``given_pairs_dropped``, of which one rollout is not usable, or the verdicts are equal. ``given`` are the weights
    that came with rows, by row, where they are not 1.
    """

    groups: list[Group]
    counts: dict[str, int]
    given: Mapping[int, float] = field(default_factory=dict)

    def select(self, title: str, examples: Sequence[Example]) -> Selection:
        """Order ``examples`` by their rows, weigh them as their rows were given to count, and add the counts of what
        they use.

        A pair counts the geometric mean of what its two rows do: as much as they, where they count alike, as the rows
        of a preference record do, and nothing where one of them counts nothing.

        ``rows_used`` counts distinct rows, of which ``correct_rows`` and ``wrong_rows`` by verdict (the share of
        negatives in the data is ``wrong_rows / rows_used``); ``negative_rows`` counts those with a weight below zero.

        Raises:
            DataError: there is no example; ``title`` names the loss.
        """
        if not examples:
            raise DataError(
                f"{title} finds nothing to learn from in {_describe(self.counts)}. "
                "Sample more rollouts for each prompt, or leave this loss out of the study."
            )
        ordered = [self._weighed(example) for example in sorted(examples, key=lambda example: example.rows)]
        weights = {
            row: weight for example in ordered for row, weight in zip(example.rows, example.weights, strict=True)
        }
        verdicts = {row: ok for group in self.groups for row, ok in zip(group.rows, group.correct, strict=True)}
        correct = sum(verdicts[row] for row in weights)
        used = {
            "rows_used": len(weights),
            "correct_rows": correct,
            "wrong_rows": len(weights) - correct,
            "negative_rows": sum(weight < 0 for weight in weights.values()),
        }
        return Selection(ordered, self.counts | used)

    def _weighed(self, example: Example) -> Example:
        if not any(row in self.given for row in example.rows):
            return example
        counts = [self.given.get(row, 1.0) for row in example.rows]
        share = counts[0] if len(set(counts)) == 1 else math.prod(counts) ** (1 / len(counts))
        return Example(example.rows, tuple(weight * share for weight in example.weights))


def group_rollouts(rollouts: pa.Table) -> Groups:
    """Group the rollout table by prompt, leaving out rows that no loss can use.

    Truncated completions lack the end-of-text token, so imitating them teaches never to stop; rows whose ``correct`` is
    null were not graded. Both are counted; a row that is both counts as truncated.

    Raises:
        DataError: a row has no ``prompt_id``.
    """
    columns = ("prompt_id", "correct", "reward", "truncated", "pair", "source")
    table = zip(*(rollouts.column(name).to_pylist() for name in columns), strict=True)
    found: dict[str, list[tuple[int, bool, float | None, str | None]]] = {}
    given: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    marked: Counter[tuple[str, str]] = Counter()
    truncated_dropped = ungraded_dropped = 0
    for row, (prompt, correct, reward, truncated, pair, source) in enumerate(table):
        if prompt is None:
            raise DataError(f"row {row} of the rollouts has no prompt_id; every rollout must name its prompt.")
        if pair is not None:
            marked[prompt, pair] += 1
        if truncated:
            truncated_dropped += 1
        elif correct is None:
            ungraded_dropped += 1
        else:
            usable = reward if reward is not None and math.isfinite(reward) else None
            found.setdefault(prompt, []).append((row, correct, usable, source))
            if pair is not None:
                given.setdefault((prompt, pair), ([], []))[not correct].append(row)
    pairs: dict[str, tuple[tuple[int, int], ...]] = {prompt: () for prompt, _ in marked}
    for (prompt, _), (right, wrong) in given.items():
        pairs[prompt] += tuple(zip(right, wrong, strict=False))
    groups = [replace(Group(*zip(*members, strict=True)), pairs=pairs.get(prompt)) for prompt, members in found.items()]
    counts = {
        "rows_seen": rollouts.num_rows,
        "truncated_dropped": truncated_dropped,
        "ungraded_dropped": ungraded_dropped,
        "prompts": len(groups),
        "mixed_prompts": sum(group.mixed for group in groups),
        "all_correct_prompts": sum(all(group.correct) for group in groups),
        "all_wrong_prompts": sum(not any(group.correct) for group in groups),
    }
    if marked:
        whole = sum(len(group.pairs or ()) for group in groups)
        counts |= {"given_pairs": whole, "given_pairs_dropped": sum(-(-n // 2) for n in marked.values()) - whole}
    weights = rollouts.column("weight").to_pylist() if "weight" in rollouts.column_names else []
    return Groups(groups, counts, {row: w for row, w in enumerate(weights) if w is not None and w != 1})


@cache
def can_learn(loss: Loss, samples: int, source: str) -> bool:
    """Whether ``loss`` finds an example among any rollouts of so many ``samples`` a prompt, written by ``source``.

    It is asked of prompts with each number of right ones; beyond 8 samples, more of them make no difference.
    """
    count = min(samples, 8)
    rows = [
        {"prompt_id": str(right), "sample": sample, "reward": float(sample < right), "correct": sample < right,
         "truncated": False, "source": source, "split": "train"}
        for right in range(count + 1)
        for sample in range(count)
    ]  # fmt: skip
    try:
        loss.select(pa.Table.from_pylist(rows, schema=SCHEMAS["rollouts"]))
    except DataError:
        return False
    return True


def _describe(counts: dict[str, int]) -> str:
    return (
        f"{counts['rows_seen']} rollouts ({counts['truncated_dropped']} truncated, "
        f"{counts['ungraded_dropped']} ungraded; "
        f"of {counts['prompts']} usable prompts {counts['mixed_prompts']} are mixed, "
        f"{counts['all_correct_prompts']} all correct, {counts['all_wrong_prompts']} all wrong)"
    )
