"""From raw records to the ``rollouts`` table: bad rows are set aside with their reason, good rows are never lost."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from raygeo.errors import DataError
from raygeo.rollouts.grading import Grading, Verdict, gold_answer, grader
from raygeo.tables import SCHEMAS, to_arrow
from raygeo.workload import Rows

SNIPPET_CHARACTERS = 200
"""How much of a rejected record is kept."""

LOGPROB_ROUNDING = 1e-3
"""How far above 0 a log-probability may be; it is then taken as 0."""

_UNREADABLE_GOLD = "error: gold answer not understood"


@dataclass(frozen=True)
class Record:
    """One record as a reader found it: ``values`` under raygeo's field names, or the ``error`` that made it unreadable.

    ``origin`` and ``line`` (from 1) say where it stands; ``text`` is the beginning of the raw record, where it had one.
    """

    origin: str
    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    text: str = ""


class Rejection(Exception):
    """A record cannot be used; the message is the reason, worded alike for alike records so that it can be counted."""


@dataclass(frozen=True)
class Validated:
    """``rollouts`` and ``rejected`` as in ``raygeo.tables``; ``notes`` counts what the grader had to say (timeouts)."""

    rollouts: pa.Table
    rejected: pa.Table
    notes: dict[str, int]


def validate(
    records: Iterable[Record],
    *,
    grading: Grading = "exact",
    max_rejected: float = 0.05,
    unfit: Callable[[str, str], str | None] | None = None,
) -> Validated:
    """Check, grade and number the records of one or several readers, in order; every row is in the split "train".

    A verdict missing from a record comes from grading its completion against its gold answer, or, without a gold
    answer, from its reward being positive; a missing reward is the verdict's 1 or 0. ``prompt_id`` defaults to a hash
    of the prompt. ``sample`` keeps a given number that is free within its prompt and is the next free one otherwise.
    ``unfit(prompt, completion)`` may give a further reason to reject a row, such as its length. A record whose
    ``logprobs`` are no log-probabilities is rejected, not merely stripped of them: they show that it is not what it is
    taken for. Duplicates of (prompt, completion) are kept: ``counts`` counts them.

    Raises ``DataError`` when no record is usable, or more than the share ``max_rejected`` of them is not.
    """
    rejected: Rows = []
    candidates: list[tuple[Record, dict[str, Any]]] = []
    identities = PromptIdentities()
    for record in records:
        try:
            row = _checked(record)
            if row["correct"] is None and grading == "exact" and gold_answer(row["gold"]) is None:
                raise Rejection("gold is not a number")
            if unfit is not None and (why := unfit(row["prompt"], row["completion"])) is not None:
                raise Rejection(why)
            if row["prompt_id"] is not None:
                identities.identify(row["prompt"], row["prompt_id"])
            candidates.append((record, row))
        except Rejection as reason:
            rejected.append(rejection_row(record, str(reason)))
    total = len(candidates) + len(rejected)

    verdicts = _grade([row for _, row in candidates], grading)
    numbers = _SampleNumbers()
    rows: Rows = []
    for (record, row), verdict in zip(candidates, verdicts, strict=True):
        try:
            if verdict is not None:
                if verdict.note == _UNREADABLE_GOLD:
                    raise Rejection("gold cannot be read as mathematics")
                row["correct"] = verdict.correct
            if row["reward"] is None:
                row["reward"] = float(row["correct"])
            row["prompt_id"] = identities.identify(row["prompt"], row["prompt_id"])
            row["sample"] = numbers.assign(row["prompt_id"], row["sample"])
            rows.append(row)
        except Rejection as reason:
            rejected.append(rejection_row(record, str(reason)))

    refuse_too_many(rejected, total, max_rejected, "rollouts")
    notes = Counter(verdict.note for verdict in verdicts if verdict is not None and verdict.note)
    return Validated(to_arrow("rollouts", rows), to_arrow("rejected", rejected), dict(notes))


def _checked(record: Record) -> dict[str, Any]:
    """Return the record as a table row; its ``correct``, ``reward``, ``prompt_id`` and ``sample`` may still be None."""
    if record.error is not None:
        raise Rejection(record.error)
    values = record.values
    row: dict[str, Any] = {
        "prompt": required_text(values, "prompt"),
        "completion": required_text(values, "completion"),
        "gold": gold_text(values),
        "reward": _reward(values.get("reward")),
        "correct": _flag(values, "correct"),
        "truncated": _flag(values, "truncated") or False,
        "prompt_id": identifier(values),
        "sample": _sample(values.get("sample")),
        "source": optional_text(values, "source") or record.origin,
        "split": "train",
        "logprobs": _logprobs(values.get("logprobs")),
    }
    if row["correct"] is None and row["gold"] is None:
        if row["reward"] is None:
            raise Rejection("no verdict: neither correct, gold nor reward")
        row["correct"] = row["reward"] > 0
    return row


def optional_text(values: Mapping[str, Any], name: str) -> str | None:
    """Return the text in field ``name``, None when it is absent; raise ``Rejection`` when it is not Unicode text."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Rejection(f"{name} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Rejection(f"{name} is not valid Unicode") from None
    return value


def required_text(values: Mapping[str, Any], name: str) -> str:
    """Return the text in field ``name``; raise ``Rejection`` when it is absent, blank or not Unicode text."""
    value = optional_text(values, name)
    if value is None:
        raise Rejection(f"missing field {name!r}")
    if not value.strip():
        raise Rejection(f"empty {name}")
    return value


def gold_text(values: Mapping[str, Any]) -> str | None:
    """Return the gold answer as text (a number in full decimal notation); None when it is absent or blank."""
    value = values.get("gold")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        number = Decimal(str(value))
        if not number.is_finite():
            raise Rejection("gold is not finite")
        return f"{number:f}"
    text = optional_text(values, "gold")
    return text if text and text.strip() else None


def identifier(values: Mapping[str, Any]) -> str | None:
    """Return the given ``prompt_id`` as text (an integer is allowed); None when it is absent."""
    value = values.get("prompt_id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value is None else required_text(values, "prompt_id")


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float | Decimal):
        raise Rejection("reward is not a number")
    try:
        reward = float(value)
    except (OverflowError, ValueError):  # an integer beyond all floats, a signalling NaN
        reward = math.nan
    if not math.isfinite(reward):
        raise Rejection("reward is not finite")
    return reward


def _flag(values: Mapping[str, Any], name: str) -> bool | None:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise Rejection(f"{name} is not true or false")
    return value


def _sample(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Rejection("sample is not a number from 0")
    return value


def _logprobs(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    try:
        numbers = np.asarray(value)
    except (TypeError, ValueError):  # lists of unequal length
        raise Rejection("logprobs is not a list of numbers") from None
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu" or numbers.size == 0:
        raise Rejection("logprobs is not a list of numbers")
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise Rejection("logprobs are not finite")
    if numbers.max() > LOGPROB_ROUNDING:
        raise Rejection("logprobs above 0")
    return np.minimum(numbers, 0)


def _grade(rows: Sequence[Mapping[str, Any]], grading: Grading) -> list[Verdict | None]:
    """Grade the rows that have no verdict yet; the others get None."""
    ungraded = [row["correct"] is None for row in rows]
    if not any(ungraded):
        return [None] * len(rows)
    with grader(grading) as judge:
        items = [(row["completion"], row["gold"]) for row, needed in zip(rows, ungraded, strict=True) if needed]
        verdicts = iter(judge.grade_many(items))
    return [next(verdicts) if needed else None for needed in ungraded]


def prompt_hash(prompt: str) -> str:
    """Return 16 hex digits of SHA-256 of the prompt: its ``prompt_id`` where none is given."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


class PromptIdentities:
    """Keeps prompts and their ids one to one, so that groups and held-out splits are whole prompts."""

    def __init__(self) -> None:
        self._id_of: dict[str, str] = {}
        self._prompt_of: dict[str, str] = {}

    def identify(self, prompt: str, given: str | None) -> str:
        """Return the id of ``prompt``: the one ``given``, else the one known, else its hash.

        Raises ``Rejection`` when this contradicts an earlier call.
        """
        prompt_id = given or self._id_of.get(prompt) or prompt_hash(prompt)
        if self._id_of.get(prompt, prompt_id) != prompt_id:
            raise Rejection("prompt has another prompt_id in an earlier record")
        if self._prompt_of.get(prompt_id, prompt) != prompt:
            raise Rejection("prompt_id names another prompt in an earlier record")
        self._id_of[prompt], self._prompt_of[prompt_id] = prompt_id, prompt
        return prompt_id


class _SampleNumbers:
    """Numbers the samples of each prompt without collisions."""

    def __init__(self) -> None:
        self._taken: defaultdict[str, set[int]] = defaultdict(set)
        self._next: Counter[str] = Counter()

    def assign(self, prompt_id: str, given: int | None) -> int:
        taken = self._taken[prompt_id]
        if given is None or given in taken:
            while self._next[prompt_id] in taken:
                self._next[prompt_id] += 1
            given = self._next[prompt_id]
        taken.add(given)
        return given


def rejection_row(record: Record, reason: str) -> dict[str, Any]:
    """Return the row of the ``rejected`` table for ``record``."""
    text = (record.text or repr(dict(record.values)))[:SNIPPET_CHARACTERS].encode(errors="backslashreplace").decode()
    return {"source": record.origin, "line": record.line, "reason": reason, "text": text}


def refuse_too_many(rejected: Rows, total: int, limit: float, what: str) -> None:
    """Raise ``DataError`` when the share of ``rejected`` rows exceeds ``limit``, or no row is left."""
    if total == 0:
        raise DataError(f"{what}: there are no records; check the paths, and that the files are not empty")
    if rejected and (len(rejected) / total > limit or len(rejected) == total):
        reasons = Counter(row["reason"] for row in rejected).most_common()
        raise DataError(
            f"{what}: {len(rejected)} of {total} records cannot be used; max_rejected is {limit:g} ("
            + ", ".join(f"{number} x {reason}" for reason, number in reasons)
            + "). The first: "
            + "; ".join(f"{row['source']}:{row['line']} {row['reason']}: {row['text'][:80]!r}" for row in rejected[:3])
            + ". Correct them, or raise max_rejected."
        )


def split_heldout(rollouts: pa.Table, heldout: int | float, seed: int) -> pa.Table:
    """Mark whole prompts as "heldout", all others as "train".

    ``heldout`` is a number of prompts, or (a float below 1) a share of them, rounded, at least one prompt if it is not
    0. Which ones depends only on ``seed`` and the prompts' ids, not on the order of rows.

    Raises ``DataError`` when no prompt would be left to learn from.
    """
    prompts = rollouts["prompt_id"].unique().to_pylist()
    count = heldout if isinstance(heldout, int) else max(round(heldout * len(prompts)), 1 if heldout > 0 else 0)
    if heldout < 0 or count >= len(prompts):
        raise DataError(
            f"cannot hold out {heldout} of {len(prompts)} prompts: at least one must stay to learn from; "
            "give a smaller number, or a share from 0 up to but not including 1"
        )
    prompts.sort(key=lambda prompt_id: hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest())
    chosen = set(prompts[:count])
    split = ["heldout" if prompt_id in chosen else "train" for prompt_id in rollouts["prompt_id"].to_pylist()]
    position = rollouts.schema.get_field_index("split")
    return rollouts.set_column(position, SCHEMAS["rollouts"].field("split"), pa.array(split, pa.string()))


def counts(rollouts: pa.Table, rejected: pa.Table | None = None, notes: Mapping[str, int] | None = None) -> Rows:
    """Count what a reader of any result should know, as rows of the table ``counts``.

    A prompt is mixed when it has right and wrong rollouts; ``wrong`` over ``rows`` is the share of negatives.
    Duplicates are rows beyond the first with the same prompt and completion.
    """
    by_prompt = rollouts.group_by("prompt_id").aggregate([("correct", "all"), ("correct", "any"), ("split", "min")])
    all_correct = sum(by_prompt["correct_all"].to_pylist())
    any_correct = sum(by_prompt["correct_any"].to_pylist())
    correct = sum(rollouts["correct"].to_pylist())
    values = {
        "rows": rollouts.num_rows,
        "prompts": by_prompt.num_rows,
        "heldout_prompts": by_prompt["split_min"].to_pylist().count("heldout"),
        "correct": correct,
        "wrong": rollouts.num_rows - correct,
        "truncated": sum(map(bool, rollouts["truncated"].to_pylist())),
        "mixed_prompts": any_correct - all_correct,
        "all_correct_prompts": all_correct,
        "all_wrong_prompts": by_prompt.num_rows - any_correct,
        "duplicates": rollouts.num_rows - rollouts.group_by(["prompt", "completion"]).aggregate([]).num_rows,
    }
    if rejected is not None:
        reasons = Counter(rejected["reason"].to_pylist())
        values |= {"rejected": rejected.num_rows} | {f"rejected: {reason}": n for reason, n in reasons.most_common()}
    values |= {f"grading: {note}": n for note, n in sorted((notes or {}).items())}
    return [{"stage": "rollouts", "name": name, "value": value} for name, value in values.items()]
