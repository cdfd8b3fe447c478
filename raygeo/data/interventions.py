"""Changes to the training split for ablations and controls: another share of wrong rollouts, shuffled rewards.

Only usable rows take part (complete and graded: those losses learn from), never rows of held-out prompts. What is drawn
depends on the seed and on the rows' prompts and sample numbers, not on their order in the table.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa

from raygeo.errors import DataError
from raygeo.tables import SCHEMAS


def set_negative_share(rollouts: pa.Table, share: float, seed: int) -> pa.Table:
    """Drop training rows of the over-represented verdict until ``share`` of the usable ones are wrong (or nearest).

    Rows go first whose prompt keeps another row of the same verdict, then those without which a prompt is no longer
    mixed, and last those without which it is lost altogether. Preference pairs stay whole: rows of none go first, and
    where those do not suffice, whole pairs.

    Raises:
        DataError: too few rows are wrong, or right, to make up the share.
    """
    correct = rollouts["correct"].to_pylist()
    usable = _usable(rollouts)
    wrong = [row for row in usable if not correct[row]]
    right = [row for row in usable if correct[row]]
    if len(wrong) == share * len(usable):
        return rollouts
    many, few, part = (wrong, right, share) if len(wrong) > share * len(usable) else (right, wrong, 1 - share)
    pairs = _pairs(rollouts, usable)
    paired = {row for pair in pairs for row in pair}
    loose = [row for row in many if row not in paired]
    wanted = len(few) * part / (1 - part)
    kept, kept_pairs = max(round(wanted) - len(pairs), 0), len(pairs)
    if wanted < len(pairs):  # each pair that goes takes a row of either verdict
        kept_pairs = round((len(few) - len(pairs)) * part / (1 - 2 * part))
    many_left, few_left = kept + kept_pairs, len(few) - len(pairs) + kept_pairs
    if not few_left or (many_left == 0 and part > 0):
        raise DataError(
            f"rollouts.negative_share {share:g} cannot be reached by dropping rows: of {len(usable)} usable training "
            f"rollouts {len(wrong)} are wrong"
            + (f", and {2 * len(pairs)} are pairs of a right and a wrong one, which stay whole" if pairs else "")
            + ". Choose another share, or bring more rollouts."
        )
    dropped = set(_dispensable(rollouts, loose, few, seed)[kept:])
    partner = dict(pairs)
    for row in _dispensable(rollouts, list(partner), few, seed)[kept_pairs:]:
        dropped |= {row, partner[row]}
    return rollouts.filter(pa.array([row not in dropped for row in range(rollouts.num_rows)]))


def _dispensable(rollouts: pa.Table, rows: list[int], few: list[int], seed: int) -> list[int]:
    """``rows`` in a seeded order, those last that prompts need most."""
    prompts = rollouts["prompt_id"].to_pylist()
    drawn = _shuffled(rollouts, rows, seed)
    first = {prompts[row]: row for row in reversed(drawn)}
    mixed = {prompts[row] for row in few}
    return sorted(drawn, key=lambda row: (first[prompts[row]] != row, prompts[row] in mixed))


def shuffle_rewards(rollouts: pa.Table, seed: int) -> pa.Table:
    """Permute the verdicts, each with its reward, over all usable training rows; texts stay where they are.

    The two rows of a preference pair exchange theirs in every second pair, in a seeded order, and take no part in the
    permutation, so that pairs stay pairs. A control: the shares of right and wrong rows are kept, and what they have to
    do with the texts is not.
    """
    usable = _usable(rollouts)
    pairs = _pairs(rollouts, usable)
    other = dict(pairs) | {wrong: right for right, wrong in pairs}
    rows = [row for row in usable if row not in other]
    prompts, samples = (rollouts[name].to_pylist() for name in ("prompt_id", "sample"))
    source = dict(
        zip(_shuffled(rollouts, rows, seed), sorted(rows, key=lambda r: (prompts[r], samples[r])), strict=True)
    )
    turned = _shuffled(rollouts, [right for right, _ in pairs], seed)[::2]
    source |= {row: other[row] for right in turned for row in (right, other[right])}
    taken = pa.array([source.get(row, row) for row in range(rollouts.num_rows)])
    for name in ("correct", "reward"):
        place = rollouts.schema.get_field_index(name)
        rollouts = rollouts.set_column(place, SCHEMAS["rollouts"].field(name), rollouts[name].take(taken))
    return rollouts


def _usable(rollouts: pa.Table) -> list[int]:
    columns = (rollouts[name].to_pylist() for name in ("split", "truncated", "correct"))
    rows = enumerate(zip(*columns, strict=True))
    return [row for row, (split, cut, correct) in rows if split == "train" and not cut and correct is not None]


def _pairs(rollouts: pa.Table, rows: Iterable[int]) -> list[tuple[int, int]]:
    """The right and the wrong row of each preference pair that ``rows`` hold whole."""
    sides: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    marks, correct, samples = (rollouts[name].to_pylist() for name in ("pair", "correct", "sample"))
    for row in sorted(rows, key=lambda row: samples[row]):
        if marks[row] is not None:
            sides[marks[row]][not correct[row]].append(row)
    return [pair for right, wrong in sides.values() for pair in zip(right, wrong, strict=False)]


def _shuffled(rollouts: pa.Table, rows: Iterable[int], seed: int) -> list[int]:
    """``rows`` in a seeded order."""
    prompts, samples = (rollouts[name].to_pylist() for name in ("prompt_id", "sample"))
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{prompts[row]}:{samples[row]}".encode()).digest())
