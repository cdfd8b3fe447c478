"""From raw records to the ``rollouts`` table: bad rows are set aside with their reason, good rows are never lost."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from raygeo.data.grading import (
    Choice,
    Grading,
    gold_answer,
)
from raygeo.data.math_grading import final_answer
from raygeo.errors import DataError, UnusableError
from raygeo.paths import without_credentials
from raygeo.tables import SCHEMAS
from raygeo.workload import Rows

SNIPPET_CHARACTERS = 200
"""How much is kept of a record that is set aside."""

LOGPROB_ROUNDING = 1e-3
"""How far above 0 a log-probability may be; it is then taken as 0."""

LEAST_TAIL = 2.0**-24
"""What is left at least of a law whose other probabilities add up to 1 in fp32: half of the rounding of 1."""

MASS_ROUNDING = 1e-3
"""How far the probabilities of a teacher's likeliest tokens and of all others may add up to another number than 1."""

GRADED = "graded by "
"""What begins the name of the count that says how rollouts were graded, and of how many had no verdict before."""
NOTED = "grading: "
"""What begins the names of the counts of what the grader had to say."""


_RULES = {
    "not JSON": "JSON is read one object a line, or as one list of objects",
    "correct is not true or false": "verdicts are true and false, or 1 and 0",
    "prompt occurs in an earlier record": "a problem has one record",
}
"""What records have to be, by why they could not be used."""


@dataclass(frozen=True)
class Record:
    """One record as a reader found it: ``values`` under raygeo's field names, or the ``error`` that made it unreadable.

    ``origin``, without credentials, and ``line`` (from 1) say where it stands; ``text`` is the beginning of the raw
    record, where it had one.
    """

    origin: str
    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", without_credentials(self.origin))


class SetAside(Exception):
    """A record cannot be used; the message is the reason, worded alike for alike records so that it can be counted."""


@dataclass(frozen=True)
class Validated:
    """``rollouts`` and ``set_aside`` as in ``raygeo.tables``, and how ``graded`` rows were graded that had no verdict.

    ``notes`` counts what the grader had to say (no answer, no marker).
    """

    rollouts: pa.Table
    set_aside: pa.Table
    notes: dict[str, int]
    grading: Choice
    graded: int


def plain_gold(gold: str) -> Fraction | str:
    """A gold answer so that most equal ones are equal: a number, or text without differences of case and spaces."""
    number = gold_answer(gold)
    return " ".join((final_answer(gold) or gold).casefold().split()) if number is None else Fraction(number)


def checked(record: Record) -> dict[str, Any]:
    """Return the record as a table row; its ``correct``, ``reward``, ``prompt_id`` and ``sample`` may still be None.

    Raises ``SetAside`` when the record cannot be used.
    """
    if record.error is not None:
        raise SetAside(record.error)
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
        "pair": optional_text(values, "pair"),
        "weight": _weight(values.get("weight")),
        **_likeliest(*(values.get(name) for name in ("top_ids", "top_logprobs", "top_tail"))),
    }
    if row["correct"] is None and row["gold"] is None:
        if row["reward"] is None:
            raise SetAside("no verdict: neither correct, gold nor reward")
        row["correct"] = row["reward"] > 0
    return row


def optional_text(values: Mapping[str, Any], name: str) -> str | None:
    """Return the text in field ``name``, None when it is absent; raise ``SetAside`` when it is not Unicode text."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise SetAside(f"{name} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SetAside(f"{name} is not valid Unicode") from None
    return value


def required_text(values: Mapping[str, Any], name: str) -> str:
    """Return the text in field ``name``; raise ``SetAside`` when it is absent, blank or not Unicode text."""
    value = optional_text(values, name)
    if value is None:
        raise SetAside(f"missing field {name!r}")
    if not value.strip():
        raise SetAside(f"empty {name}")
    return value


def gold_text(values: Mapping[str, Any]) -> str | None:
    """Return the gold answer as text (a number in full decimal notation); None when it is absent or blank."""
    value = values.get("gold")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        number = Decimal(str(value))
        if not number.is_finite():
            raise SetAside("gold is not finite")
        return f"{number:f}"
    text = optional_text(values, "gold")
    return text if text and text.strip() else None


def identifier(values: Mapping[str, Any]) -> str | None:
    """Return the given ``prompt_id`` as text (a whole number is allowed); None when it is absent."""
    value = values.get("prompt_id")
    if (number := _whole(value)) is not None:
        return str(number)
    return None if value is None else required_text(values, "prompt_id")


def _whole(value: Any) -> int | None:
    """A whole number; also one that a column with missing values holds as a float, as long as it is exact there."""
    if isinstance(value, float) and abs(value) < 1 << 53 and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float | Decimal):
        raise SetAside("reward is not a number")
    try:
        reward = float(value)
    except (OverflowError, ValueError):  # an integer beyond all floats, a signalling NaN
        reward = math.nan
    if not math.isfinite(reward):
        raise SetAside("reward is not finite")
    return reward


def _flag(values: Mapping[str, Any], name: str) -> bool | None:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise SetAside(f"{name} is not true or false")
    return value


def _sample(value: Any) -> int | None:
    if value is None:
        return None
    number = _whole(value)
    if number is None or not 0 <= number < 1 << 63:
        raise SetAside("sample is not a number from 0")
    return number


def _logprobs(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    try:
        numbers = np.asarray(value)
    except (TypeError, ValueError):  # lists of unequal length
        raise SetAside("logprobs is not a list of numbers") from None
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu" or numbers.size == 0:
        raise SetAside("logprobs is not a list of numbers")
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise SetAside("logprobs are not finite")
    if numbers.max() > LOGPROB_ROUNDING:
        raise SetAside("logprobs above 0")
    return np.minimum(numbers, 0)


def _weight(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise SetAside("weight is not a number")
    try:
        weight = float(value)
    except OverflowError:
        weight = math.inf
    if not math.isfinite(weight) or weight < 0:
        raise SetAside("weight is not a number from 0")
    return weight


def _likeliest(ids: Any, logprobs: Any, tail: Any) -> dict[str, np.ndarray | None]:
    """The columns of a teacher's likeliest tokens: a list for each completion token, or flat lists beside a tail."""
    if ids is None and logprobs is None and tail is None:
        return {"top_ids": None, "top_logprobs": None, "top_tail": None}
    if ids is None or logprobs is None:
        raise SetAside("top_ids and top_logprobs do not come together")
    tokens, scores = _table("top_ids", ids, "iu"), _table("top_logprobs", logprobs, "fiu")
    rest = None if tail is None else _table("top_tail", tail, "fiu").astype(np.float32)
    if rest is not None and tokens.ndim == 1 and rest.ndim == 1 and len(rest) and len(tokens) % len(rest) == 0:
        tokens, scores = (
            part.reshape(len(rest), -1) if part.size == tokens.size else part for part in (tokens, scores)
        )
    if tokens.ndim != 2 or tokens.shape != scores.shape or (rest is not None and rest.shape != tokens.shape[:1]):
        raise SetAside("top_ids, top_logprobs and top_tail are not of the same tokens")
    scores = scores.astype(np.float32)
    if not np.isfinite(scores).all() or scores.max() > LOGPROB_ROUNDING:
        raise SetAside("top_logprobs are not finite log-probabilities")
    scores = np.minimum(scores, 0)
    if tokens.min() < 0 or tokens.max() >= 1 << 31 or (np.diff(np.sort(tokens, axis=1), axis=1) == 0).any():
        raise SetAside("top_ids are not different token ids at each token")
    mass = np.exp(scores.astype(np.float64)).sum(1)
    if rest is None:
        rest = tail_left(scores)
    elif not np.isfinite(rest).all() or rest.min() < 0 or (np.abs(mass + rest - 1) > MASS_ROUNDING).any():
        raise SetAside("top_logprobs and top_tail do not add up to 1")
    if (mass > 1 + MASS_ROUNDING).any():
        raise SetAside("top_logprobs add up to more than 1")
    return {"top_ids": tokens.astype(np.int32).ravel(), "top_logprobs": scores.ravel(), "top_tail": rest}


def tail_left(logprobs: np.ndarray) -> np.ndarray:
    """What probabilities [N, k], given as logarithms, leave of 1, at least ``LEAST_TAIL``: [N] fp32."""
    left = 1 - np.exp(logprobs.astype(np.float64)).sum(1)
    return np.maximum(left, LEAST_TAIL).astype(np.float32)


def _table(name: str, value: Any, kinds: str) -> np.ndarray:
    try:
        numbers = np.asarray(value)
    except (TypeError, ValueError):  # lists of unequal length
        raise SetAside(f"{name} are not equally many numbers at each token") from None
    if numbers.dtype.kind not in kinds or numbers.size == 0:
        raise SetAside(f"{name} are not equally many numbers at each token")
    return numbers


def prompt_digest(prompt: str) -> bytes:
    """Return 16 bytes of SHA-256 of the prompt, by which it is known."""
    return hashlib.sha256(prompt.encode()).digest()[:16]


class PromptIdentities:
    """Keeps prompts and their ids one to one, so that groups and held-out splits are whole prompts."""

    def __init__(self) -> None:
        self._id_of: dict[bytes, str] = {}
        self._prompt_of: dict[str, bytes] = {}

    def identify(self, digest: bytes, given: str | None) -> str:
        """Return the id of the prompt with this ``prompt_digest``: one ``given``, else the one known, else its hash.

        Raises ``SetAside`` when this contradicts an earlier call.
        """
        prompt_id = given or self._id_of.get(digest) or digest[:8].hex()
        if self._id_of.get(digest, prompt_id) != prompt_id:
            raise SetAside("prompt has another prompt_id in an earlier record")
        if self._prompt_of.get(prompt_id, digest) != digest:
            raise SetAside("prompt_id names another prompt in an earlier record")
        self._id_of[digest], self._prompt_of[prompt_id] = prompt_id, digest
        return prompt_id


def set_aside_row(record: Record, reason: str) -> dict[str, Any]:
    """Return the row of the table ``set_aside`` for ``record``."""
    return {"source": record.origin, "line": record.line, "reason": reason, "text": snippet(record)}


def snippet(record: Record) -> str:
    """The beginning of the raw record or, where it had no text, of its values."""
    said = record.text
    if not said:
        parts: list[str] = []
        for key, value in record.values.items():
            parts.append(f"{key!r}: {value!r}")
            if sum(map(len, parts)) > SNIPPET_CHARACTERS:
                break
        said = f"{{{', '.join(parts)}}}"
    return said[:SNIPPET_CHARACTERS].encode(errors="backslashreplace").decode()


def refuse_too_many(set_aside: Rows, total: int, limit: float, what: str, *, by_setting: bool = True) -> None:
    """Raise ``DataError`` when the share of the rows ``set_aside`` exceeds ``limit``, or no row is left.

    ``by_setting`` says whether ``limit`` is the setting ``max_set_aside``, which the user can raise.
    """
    if total == 0:
        raise DataError(f"{what}: there are no records; check the paths, and that the files are not empty")
    none_left = len(set_aside) == total
    if set_aside and (len(set_aside) / total > limit or none_left):
        reasons = Counter(row["reason"] for row in set_aside).most_common()
        raisable = by_setting and not none_left
        allowed = f"; max_set_aside is {limit:g}" if raisable else ""
        advice = "Correct them, or raise max_set_aside" if raisable else "Correct them"
        if (rule := _RULES.get(reasons[0][0])) is not None:
            advice += f" ({rule})"
        raise (UnusableError if none_left else DataError)(
            f"{what}: {len(set_aside)} of {total} records cannot be used{allowed} ("
            + ", ".join(f"{number} x {reason}" for reason, number in reasons)
            + "). The first: "
            + "; ".join(f"{row['source']}:{row['line']} {row['reason']}: {row['text'][:80]!r}" for row in set_aside[:3])
            + f". {advice}."
        )


def heldout_count(prompts: int, heldout: int | float) -> int:
    """How many of so many ``prompts`` are held out: a number of them, or (a float below 1) a share, rounded, at least
    one if it is not 0.

    Raises ``DataError`` when none would be left to learn from.
    """
    count = heldout if isinstance(heldout, int) else max(round(heldout * prompts), 1 if heldout > 0 else 0)
    if heldout < 0 or count >= prompts:
        raise DataError(
            f"cannot hold out {heldout} of {prompts} prompts: that is {count} of them, and at least one must stay to "
            "learn from. Lower rollouts.heldout, or bring more prompts."
        )
    return count


def split_heldout(rollouts: pa.Table, heldout: int | float, seed: int) -> pa.Table:
    """Mark whole prompts as "heldout", all others as "train".

    ``heldout_count`` says how many. Which ones depends only on ``seed`` and the prompts' ids, not on the order of rows.

    Raises ``DataError`` when no prompt would be left to learn from.
    """
    prompts = rollouts["prompt_id"].unique().to_pylist()
    count = heldout_count(len(prompts), heldout)
    prompts.sort(key=lambda prompt_id: hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest())
    chosen = set(prompts[:count])
    split = ["heldout" if prompt_id in chosen else "train" for prompt_id in rollouts["prompt_id"].to_pylist()]
    position = rollouts.schema.get_field_index("split")
    return rollouts.set_column(position, SCHEMAS["rollouts"].field("split"), pa.array(split, pa.large_string()))


def counts(
    rollouts: pa.Table, validated: Validated | None = None, texts: Sequence[str] = ("prompt", "completion")
) -> Rows:
    """Count what a reader of any result should know, as rows of the table ``counts``.

    ``rollouts`` are those of ``validated``, perhaps split and changed since; it adds how they were graded.

    A prompt is mixed when it has right and wrong rollouts; ``wrong`` over ``rows`` is the share of negatives.
    Duplicates are rows beyond the first with the same prompt and completion, which the columns ``texts`` tell; where
    some of these are right and wrong, ``contradictory_duplicates`` are the completions that are both.
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
        "duplicates": rollouts.num_rows - rollouts.group_by(list(texts)).aggregate([]).num_rows,
    }
    verdicts = rollouts.group_by(list(texts)).aggregate([("correct", "all"), ("correct", "any")])
    if both := sum(verdicts["correct_any"].to_pylist()) - sum(verdicts["correct_all"].to_pylist()):
        values["contradictory_duplicates"] = both
    if validated is not None:
        reasons = Counter(validated.set_aside["reason"].to_pylist()).most_common()
        values["set_aside"] = validated.set_aside.num_rows
        values |= {f"set aside: {reason}": n for reason, n in reasons}
        values |= {f"{GRADED}{validated.grading.grading}: {validated.grading.reason}": validated.graded}
        values |= {f"{NOTED}{note}": n for note, n in sorted(validated.notes.items())}
    return [{"stage": "rollouts", "name": name, "value": value} for name, value in values.items()]


def recorded_grading(counts: pa.Table) -> Grading:
    """How rollouts were graded, as ``counts`` recorded it."""
    [name] = [name for name in counts["name"].to_pylist() if name.startswith(GRADED)]
    return "math" if name.startswith(f"{GRADED}math") else "exact"
