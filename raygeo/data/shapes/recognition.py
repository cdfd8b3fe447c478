"""Which shape the records of a source have, and which of their keys hold what, by the names that keys go by."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from raygeo.data.shapes.fields import Fields, look_up
from raygeo.data.shapes.messages import are_messages
from raygeo.data.shapes.values import flag, number
from raygeo.errors import DataError

Shape = Literal["flat", "messages", "preference", "unpaired", "lists", "steps"]
"""What a record is: one rollout; one conversation; two completions, preferred and not; one completion, wanted or not;
several completions of one prompt; a solution with rated steps."""

_PROMPTS = ("prompt", "problem", "question", "query", "instruction")
_COMPLETIONS = ("completion", "response", "generated_solution", "output", "qwq")
_LISTS = ("completions", "generations", "responses", "outputs", "olmo_completions")
_GOLDS = ("gold", "expected_answer", "ground_truth", "reward_model.ground_truth", "final_answer", "answer")
"""``answer``, which may be the model's own, goes last."""
_VERDICTS = ("correct", "is_correct", "verified", "correctness", "correctness_math_verify")
_REWARDS = ("reward", "score", "rewards", "scores", "rewrads", "verifier_scores")
_REASONS = ("finish_reason", "finish_reasons")
_LOOSE: dict[str, Callable[[Any], Any]] = {"correct": flag, "truncated": flag, "reward": number, "sample": number}
_SYSTEMS = ("system", "system_prompt")
LISTED = frozenset({*_LISTS, *_VERDICTS, *_REWARDS, *_REASONS, "logprobs", "steps"})
"""Names of keys that may hold a list with an entry for each completion."""
_GOLD_NAME = re.compile(r"answer|gold|truth|target|expected|label", re.IGNORECASE)
_NO_VERDICT = re.compile(r"answer|gold|truth|target|expected|(^|_)(id|index)$", re.IGNORECASE)
_REWARD_NAME = re.compile(r"reward|score|rating", re.IGNORECASE)
_NUMBERED = re.compile(r"(?=.*(?:completion|generation|response|solution))(?P<stem>.+)_\d+")


def recognise(samples: Sequence[Mapping[str, Any]], fields: Fields, shape: Shape | None) -> tuple[Shape, Fields]:
    """The shape of records like ``samples``, unless it is given, and ``fields`` with those filled in that are not.

    A record with a prompt, a completion and a verdict under the keys given, or raygeo's own, is taken by those alone.
    """
    seen = _Seen(samples, fields)
    if shape is None:
        shape = _shape(seen)
    if shape == "flat" and seen.plain:
        plain = {"finish_reason": None if seen.has("truncated") else seen.first(_REASONS, _is_text)}
        return shape, seen.filled(**plain, **{name: name for name in _LOOSE if seen.loose(name)})
    found: dict[str, Any] = {}
    if shape == "preference":
        found = {"chosen": seen.first(("chosen",)), "rejected": seen.first(("rejected",))}
    elif shape == "unpaired":
        found = {"label": seen.flag(("label",)), "completion": seen.first(_COMPLETIONS, _is_answer)}
    elif shape == "messages":
        found = {"messages": seen.first(("messages", "conversations"), are_messages)}
    elif shape == "steps":
        found = {"steps": seen.first(("label.steps", "steps"), _is_list)}
        found["prompt"] = seen.first(("question.problem", *_PROMPTS), _is_answer)
        found["gold"] = seen.first(("question.ground_truth_answer", *_GOLDS), _is_gold)
    elif shape == "lists":
        found = {"completion": seen.first(_LISTS, _is_texts) or seen.numbered()}
        found["correct"] = seen.first(_VERDICTS, _is_list)
        found["reward"] = seen.first(_REWARDS, _is_list)
        found["finish_reason"] = seen.first(_REASONS, _is_list)
    else:
        found = {"completion": seen.first(_COMPLETIONS, _is_answer)}
    if shape in ("flat", "messages", "unpaired"):
        found["correct"] = seen.flag(_VERDICTS)
        found["reward"] = seen.first(_REWARDS, _is_number)
        found["finish_reason"] = None if seen.has("truncated") else seen.first(_REASONS, _is_text)
    if shape != "messages":
        conversations = ("conversations", "messages") if shape == "preference" else ()
        found = {"prompt": seen.first((*_PROMPTS, *conversations), _is_answer), **found}
    found = {"gold": seen.first(_GOLDS, _is_gold), "system": seen.first(_SYSTEMS, _is_text), **found}
    return shape, seen.with_input(seen.filled(**found))


class RewardScale:
    """What has been seen of rewards that are the only verdicts, a completion being right above 0."""

    def __init__(self) -> None:
        self.seen, self.least, self.most = 0, math.inf, -math.inf
        self.above: list[float] = []
        """The two lowest values above 0."""

    def see(self, reward: Any) -> None:
        """Take a reward into account, and nothing else: neither what is no number nor what is beyond all floats."""
        if not isinstance(reward, int | float | Decimal):
            return
        try:
            value = float(reward)
        except (OverflowError, ValueError):  # an integer beyond all floats, a signalling NaN
            return
        if not math.isfinite(value):
            return
        self.seen += 1
        self.least, self.most = min(self.least, value), max(self.most, value)
        if value > 0 and value not in self.above:
            self.above = sorted([*self.above, value])[:2]

    def refuse_unknown(self, key: str) -> None:
        """Raise ``DataError`` where it cannot be told from which reward on a completion is right: none is below 0, and
        they are neither one value and 0 nor 1 alone.
        """
        if not self.above or self.least < 0 or (len(self.above) == 1 and (self.least == 0 or self.above == [1])):
            return
        right = "every completion" if self.least > 0 else f"every completion from {self.above[0]:g} on"
        raise DataError(
            f"{key!r} is from {self.least:g} to {self.most:g}, never below 0, where there is neither a verdict nor a "
            f"gold answer: {right} would be right. Set `threshold` to the value from which on one is right, or "
            "`verdict: true` where all of them are; or name the key of verdicts or gold answers, if there is one "
            "(fields.correct, fields.gold)."
        )


_UNJUDGED = ("flat", "messages", "lists")
"""Shapes that are no verdict by themselves."""


def judges_by_reward(samples: Sequence[Mapping[str, Any]], fields: Fields, shape: Shape) -> bool:
    """Whether records like ``samples`` have rewards and nothing else that a verdict could be made of.

    Raises ``DataError`` as ``RewardScale`` does.
    """
    seen = _Seen(samples, fields)
    if shape not in _UNJUDGED or not seen.has("reward") or seen.has("correct") or seen.has("gold"):
        return False
    scale = RewardScale()
    for sample in samples:
        found = look_up(sample, fields.reward)
        for each in found if isinstance(found, list) else [found]:
            scale.see(number(each))
    scale.refuse_unknown(fields.reward)
    return True


def lacking_fields(samples: Sequence[Mapping[str, Any]], fields: Fields, shape: str, verdict: bool | None) -> list[str]:
    """What none of ``samples`` has of prompt, completion, and "gold" for whatever a verdict could be made of.

    ``verdict`` is that on completions that bring none, if there is one.
    """
    if not samples or shape not in _UNJUDGED:
        return []
    seen = _Seen(samples, fields)
    lacking = [name for name in ("prompt", "completion") if shape == "flat" and not seen.has(name)]
    if verdict is None and not any(seen.has(name) for name in ("correct", "gold", "reward")):
        lacking.append("gold")
    return lacking


def said(lacking: Sequence[str]) -> str:
    """What ``lacking_fields`` found, in words that follow a negation."""
    known = {"prompt": "prompt", "completion": "completion", "gold": "verdict, gold answer or reward"}
    return " nor a ".join(known[name] for name in lacking)


def refuse_lacking(samples: Sequence[Mapping[str, Any]], fields: Fields, lacking: Sequence[str], first: int) -> None:
    """Raise ``DataError`` that the ``first`` of ``samples`` have nothing of ``lacking``, with their keys and what to
    set.
    """
    seen = _Seen(samples, fields)
    keys = ", ".join(repr(key) for key in dict.fromkeys(key for sample in samples for key in sample))
    begun = f"none of the first {first} records has a {said(lacking)}. Their keys are {keys}"
    if (kind := _published_as(samples)) is not None:
        raise DataError(f"{begun}: they look like what the reader {kind!r} reads; set type: {kind}.")
    if lacking == ["completion"] and seen.has("prompt") and seen.has("gold"):
        raise DataError(
            f"{begun}: these are problems with gold answers. If one of the keys holds completions, name it, as in "
            "fields: {completion: KEY}; if none does, have a teacher answer the problems (rollouts.sample, its "
            "prompts read as these are)."
        )
    words = [(key, value) for sample in samples for key in _VERDICTS if isinstance(value := look_up(sample, key), str)]
    if words and "gold" in lacking:
        key, word = words[0]
        begun += f" ({key!r} holds {word[:40]!r}, and verdicts are true and false, or 1 and 0)"
    likely = list(seen.likely(lacking))
    named = ", ".join(f"{name}: {key}" for name, key in likely)
    sets = " ".join(f"--set fields.{name}={key}" for name, key in likely)
    verdict = "gold" in lacking
    others = " (correct: is a verdict, gold: a gold answer, reward: a reward)" if verdict else ""
    all_right = ", or set verdict: true if every completion is right" if verdict else ""
    raise DataError(
        f"{begun}: say which holds what, as in fields: {{{named}}}{others}{all_right}. For `raygeo data` and "
        f"`raygeo init` that is {sets}{', or --set verdict=true' if verdict else ''}."
    )


def _published_as(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """The reader of a format of its own that records like ``samples`` are in, if it is one."""
    first = samples[0]
    if isinstance(first.get("question"), str) and "####" in str(first.get("answer")):
        return "gsm8k"
    graded = any(isinstance(value, Mapping) and {"solution", "is_correct"} <= set(value) for value in first.values())
    return "solutions" if graded and {"question", "ground_truth"} <= set(first) else None


def recognise_prompts(samples: Sequence[Mapping[str, Any]], fields: Fields) -> Fields:
    """The ``fields`` of problems like ``samples``, with those filled in that are not given."""
    seen = _Seen(samples, fields)
    if seen.has("prompt") and seen.has("gold"):
        return fields
    return seen.with_input(seen.filled(prompt=seen.first(_PROMPTS, _is_answer), gold=seen.first(_GOLDS, _is_gold)))


def _shape(seen: "_Seen") -> Shape:
    texts = seen.first(_LISTS, _is_texts)
    completion = seen.value("completion")
    if seen.plain:
        return "flat"
    if seen.has("chosen", "chosen") and seen.has("rejected", "rejected"):
        return "preference"
    if seen.has("steps", "label.steps"):
        return "steps"
    if _is_texts(completion) or isinstance(seen.fields.completion, tuple):
        return "lists"
    named = seen.given("completion")
    single = named or seen.first(_COMPLETIONS, _is_answer)
    if single and (seen.given("label") or _is_flag(seen.value("label", "label"))):
        return "unpaired"
    if texts and not named and (not single or seen.first((*_VERDICTS, *_REWARDS), _is_list)):
        return "lists"
    if single:
        return "flat"
    if seen.given("messages") or seen.first(("messages", "conversations"), are_messages):
        return "messages"
    return "lists" if seen.numbered() else "flat"


class _Seen:
    """What the keys of some records hold, as far as one of them tells."""

    def __init__(self, samples: Sequence[Mapping[str, Any]], fields: Fields):
        self.samples, self.fields = samples, fields

    @property
    def plain(self) -> bool:
        """Whether prompt, completion and a verdict are where ``fields`` say, each one of a record."""
        one = _is_answer(self.value("prompt")) and _is_answer(self.value("completion"))
        return one and any(self.has(name) for name in ("correct", "gold", "reward"))

    def given(self, name: str) -> bool:
        """Whether the user names the key of a field."""
        return bool(getattr(self.fields, name) != Fields.model_fields[name].default)

    def value(self, name: str, default: str | None = None) -> Any:
        """The first value of a field that is not null; of the key ``default`` where the field has none."""
        key = getattr(self.fields, name) or default
        return None if key is None or isinstance(key, tuple) else self._at(key)

    def has(self, name: str, default: str | None = None) -> bool:
        """Whether some record has a field."""
        return self.value(name, default) is not None

    def first(self, names: Sequence[str], fits: Callable[[Any], bool] = bool) -> str | None:
        """The first key whose value is as it should be and that the user did not name for another field."""
        taken = {key for name, key in self.fields.named() if self.given(name)}
        return next((key for key in names if key not in taken and fits(self._at(key))), None)

    def numbered(self) -> tuple[str, ...] | None:
        """Keys such as ``r1_solution_1``, ``r1_solution_2``: several completions, or None."""
        stems: dict[str, list[str]] = {}
        for key in dict.fromkeys(key for sample in self.samples for key in sample):
            if (match := _NUMBERED.fullmatch(key)) is not None and isinstance(self._at(key), str):
                stems.setdefault(match["stem"], []).append(key)
        return next((tuple(keys) for keys in stems.values() if len(keys) > 1), None)

    def flag(self, names: Sequence[str]) -> str | None:
        """The first key that holds true or false, or nothing but 1 and 0."""
        return self.first(names, _is_flag) or next(
            (key for key in names if self.first((key,)) and self._bits(key)), None
        )

    def loose(self, name: str) -> bool:
        """Whether a field's truth values or numbers are written as something else."""
        values = (look_up(sample, getattr(self.fields, name)) for sample in self.samples)
        return any(type(_LOOSE[name](value)) is not type(value) for value in values)

    def likely(self, lacking: Sequence[str]) -> Iterator[tuple[str, str]]:
        """For each field that is ``lacking`` a field to name and the key that may hold it, ``KEY`` if none seems to.

        Of verdicts, flags go before gold answers and these before rewards, which must be named like ones.
        """
        taken = {key for _, key in self.fields.named()}
        keys = dict.fromkeys(key for sample in self.samples for key in sample if key not in taken)
        texts = [key for key in keys if _is_answer(self._at(key))]
        for name in lacking:
            if name != "gold":
                yield name, texts.pop(0) if texts else "KEY"
                continue
            flags = [("correct", key) for key in keys if self._bits(key) and not _NO_VERDICT.search(key)]
            golds = [("gold", key) for key in keys if _GOLD_NAME.search(key) and _is_gold(self._at(key))]
            rewards = [("reward", key) for key in keys if _REWARD_NAME.search(key) and _is_number(self._at(key))]
            yield next(iter([*flags, *golds, *rewards]), ("correct", "KEY"))

    def filled(self, **found: Any) -> Fields:
        """The fields, with those that were found and that the user does not name."""
        new = {name: key for name, key in found.items() if key is not None and not self.given(name)}
        return self.fields.with_found(new)

    def with_input(self, fields: Fields) -> Fields:
        """The fields, with an instruction's input, which the user does not name."""
        key = self.first(("input",), _is_text) if fields.prompt == "instruction" and fields.input is None else None
        return fields.with_found({"input": key}) if key is not None else fields

    def _bits(self, key: str) -> bool:
        values = [value for sample in self.samples if (value := look_up(sample, key)) is not None]
        return bool(values) and all(isinstance(flag(value), bool) for value in values)

    def _at(self, key: str) -> Any:
        return next((value for sample in self.samples if (value := look_up(sample, key)) is not None), None)


def _is_answer(value: Any) -> bool:
    return isinstance(value, str) or are_messages(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_texts(value: Any) -> bool:
    """A list of completions: texts, or conversations."""
    return isinstance(value, list) and any(map(_is_answer, value)) and not are_messages(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))


def _is_number(value: Any) -> bool:
    value = number(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_gold(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value) or (isinstance(value, list) and bool(value))
