"""Changes to the training split for ablations and controls: another share of wrong rollouts, shuffled rewards.

Only usable rows take part (complete and graded: those losses learn from), never rows of held-out prompts. What is drawn
depends on the seed and on the rows' prompts and sample numbers, not on their order in the table.
"""

import hashlib
from collections.abc import Iterable

import pyarrow as pa

from raygeo.errors import DataError
from raygeo.tables import SCHEMAS


def set_negative_share(rollouts: pa.Table, share: float, seed: int) -> pa.Table:
    """Drop training rows of the over-represented verdict until ``share`` of the usable ones are wrong (or nearest).

    Rows go first whose prompt keeps another row of the same verdict, then those without which a prompt is no longer
    mixed, and last those without which it is lost altogether.

    Raises:
        DataError: too few rows are wrong, or right, to make up the share.
    """
    correct, prompts = (rollouts[name].to_pylist() for name in ("correct", "prompt_id"))
    usable = _usable(rollouts)
    wrong = [row for row in usable if not correct[row]]
    right = [row for row in usable if correct[row]]
    if len(wrong) == share * len(usable):
        return rollouts
    many, few, part = (wrong, right, share) if len(wrong) > share * len(usable) else (right, wrong, 1 - share)
    kept = round(len(few) * part / (1 - part))
    if not few or (kept == 0 and part > 0):
        raise DataError(
            f"rollouts.negative_share {share:g} cannot be reached by dropping rows: of {len(usable)} usable training "
            f"rollouts {len(wrong)} are wrong. Choose another share, or bring more rollouts."
        )
    drawn = _shuffled(rollouts, many, seed)
    first = {prompts[row]: row for row in reversed(drawn)}
    mixed = {prompts[row] for row in few}
    dropped = set(sorted(drawn, key=lambda row: (first[prompts[row]] != row, prompts[row] in mixed))[kept:])
    return rollouts.filter(pa.array([row not in dropped for row in range(rollouts.num_rows)]))


def shuffle_rewards(rollouts: pa.Table, seed: int) -> pa.Table:
    """Permute the verdicts, each with its reward, over all usable training rows; texts stay where they are.

    A control: the shares of right and wrong rows are kept, and what they have to do with the texts is not.
    """
    rows = _usable(rollouts)
    prompts, samples = (rollouts[name].to_pylist() for name in ("prompt_id", "sample"))
    source = dict(
        zip(_shuffled(rollouts, rows, seed), sorted(rows, key=lambda r: (prompts[r], samples[r])), strict=True)
    )
    taken = pa.array([source.get(row, row) for row in range(rollouts.num_rows)])
    for name in ("correct", "reward"):
        place = rollouts.schema.get_field_index(name)
        rollouts = rollouts.set_column(place, SCHEMAS["rollouts"].field(name), rollouts[name].take(taken))
    return rollouts


def _usable(rollouts: pa.Table) -> list[int]:
    columns = (rollouts[name].to_pylist() for name in ("split", "truncated", "correct"))
    rows = enumerate(zip(*columns, strict=True))
    return [row for row, (split, cut, correct) in rows if split == "train" and not cut and correct is not None]


def _shuffled(rollouts: pa.Table, rows: Iterable[int], seed: int) -> list[int]:
    """``rows`` in a seeded order."""
    prompts, samples = (rollouts[name].to_pylist() for name in ("prompt_id", "sample"))
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{prompts[row]}:{samples[row]}".encode()).digest())
