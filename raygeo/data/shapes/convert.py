"""What becomes of a record of each shape: rollouts under raygeo's field names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from raygeo.data.shapes.fields import Fields, look_up
from raygeo.data.shapes.messages import are_messages, as_messages, completion_text, prompt_text, split_conversation
from raygeo.data.shapes.recognition import Shape
from raygeo.data.shapes.values import flag, number
from raygeo.data.validation import SetAside
from raygeo.generation.renderer.conversation import conversation_text, messages_of
from raygeo.settings import content_key

StepRule = Literal["last", "all"]
"""``last``: a solution is right if its last step is rated above 0, wrong if below; ``all``: right if no step is rated
below 0."""

_ASKED = ("system", "input")
_WEIGHED = ("weight", "top_ids", "top_logprobs", "top_tail")
_COMMON = (
    "gold", "reward", "correct", "truncated", "prompt_id", "sample", "source", "logprobs", "finish_reason",
    *_WEIGHED, *_ASKED,
)  # fmt: skip
_ONE_EACH = ("reward", "correct", "truncated", "sample", "source", "logprobs", "finish_reason", *_WEIGHED)
_CUT = frozenset({"length", "max_length", "model_length", "max_tokens", "max_new_tokens", "max_output_tokens"})
_WHOLE = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_word", "completed", "tool_calls"})
_TURN = re.compile(
    r"(?:^|\n)[ \t]*(?:#+[ \t]*)?(?P<name>human|user|assistant)[ \t]*:|"
    r"<\|im_start\|>(?P<chatml>user|assistant)\n|"
    r"<\|start_header_id\|>(?P<llama>user|assistant)<\|end_header_id\|>\n\n|"
    r"<start_of_turn>(?P<gemma>user|model)\n",
    re.IGNORECASE,
)
"""What begins a turn in transcripts."""


def rollouts(
    raw: Mapping[str, Any], shape: Shape, fields: Fields, rule: StepRule
) -> Iterator[dict[str, Any] | SetAside]:
    """The rollouts of one record, in order; a part of a record that cannot be used is given as its reason.

    A rollout keeps its ``finish_reason`` only where it is not known whether that is a length limit's.

    Raises ``SetAside`` where nothing of the record can be used.
    """
    if shape == "lists":
        yield from _lists(raw, fields)
        return
    if shape == "preference":
        yield from _preference(raw, fields)
        return
    if shape == "messages":
        values = fields.pick(raw, ("messages", *_COMMON))
        values["prompt"], values["completion"] = split_conversation(values.pop("messages", None))
    elif shape == "steps":
        values = fields.pick(raw, ("prompt", "steps", *_COMMON))
        values |= _steps(values.pop("steps", None), raw, rule)
    else:
        values = fields.pick(raw, ("prompt", "completion", *_COMMON, *(("label",) if shape == "unpaired" else ())))
        values["completion"] = completion_text(values["completion"])
    if shape == "unpaired":
        values["correct"] = flag(values.pop("label", None))
        if values["correct"] is None:
            raise SetAside("missing field 'label'")
    yield _finished(values)


def _finished(values: dict[str, Any]) -> dict[str, Any]:
    """Values of one rollout whose prompt and gold answer are texts, cut where it ended for its length."""
    ended = values.pop("finish_reason", None)
    reason = str(ended).rpartition(".")[2].strip().lower()
    if ended is not None and values.get("truncated") is None:
        values["truncated"] = reason in _CUT
        if reason not in _CUT | _WHOLE:
            values["finish_reason"] = ended
    for names, plain in ((("correct", "truncated"), flag), (("reward", "sample", "weight"), number)):
        values |= {name: plain(values[name]) for name in names if name in values}
    return asked(values) | {"gold": gold_of(values.get("gold"))}


def asked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the whole prompt as a text: its input after it, a system message before it."""
    rest = {name: value for name, value in values.items() if name not in _ASKED}
    prompt = prompt_text(values["prompt"])
    system, more = (values.get(name) for name in _ASKED)
    for name, value in zip(_ASKED, (system, more), strict=True):
        if value is not None and not isinstance(value, str):
            raise SetAside(f"{name} is not text")
    if not isinstance(prompt, str) or not prompt.strip():
        return rest | {"prompt": prompt}
    messages = messages_of(prompt)
    if more and more.strip():
        messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\n{more}"}
    if system and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return rest | {"prompt": conversation_text(messages)}


def gold_of(value: Any) -> Any:
    """A gold answer out of a list of one; anything else is returned as it is."""
    if not isinstance(value, list):
        return value
    distinct = list(dict.fromkeys(map(str, value)))
    if len(distinct) > 1:
        raise SetAside("gold is a list of several answers")
    return distinct[0] if distinct else None


def _lists(raw: Mapping[str, Any], fields: Fields) -> Iterator[dict[str, Any] | SetAside]:
    values = fields.pick(raw, ("prompt", "completion", *_COMMON))
    completions = values["completion"]
    if not isinstance(completions, list):
        raise SetAside("completions are not a list")
    for name in _ONE_EACH:
        listed = values.get(name)
        nested = name == "logprobs" and isinstance(listed, list) and all(isinstance(x, list | None) for x in listed)
        if isinstance(listed, list) and (name != "logprobs" or nested) and len(listed) != len(completions):
            raise SetAside(f"{getattr(fields, name)} has another length than the completions")
    if len(completions) > 1:
        _refuse_one_for_all(values, fields)
    for place, completion in enumerate(completions):
        one = {name: _entry(values.get(name), place) if name in _ONE_EACH else values.get(name) for name in values}
        try:
            if completion is None:
                raise SetAside("completion is null")
            if are_messages(completion) and len(completion) > 1:
                one["prompt"], one["completion"] = split_conversation(completion)
            else:
                one["completion"] = completion_text(completion)
            yield _finished(one)
        except SetAside as reason:
            yield reason


def _refuse_one_for_all(values: dict[str, Any], fields: Fields) -> None:
    """Raise ``SetAside`` where several completions would share one verdict, and drop one reward for all of them."""
    verdict = values.get("correct")
    if verdict is not None and not isinstance(verdict, list):
        raise SetAside(f"{fields.correct} is one value for several completions")
    reward = values.get("reward")
    if reward is not None and not isinstance(reward, list):
        if verdict is None and values.get("gold") is None:
            raise SetAside(f"{fields.reward} is one value for several completions")
        values["reward"] = None


def _entry(listed: Any, place: int) -> Any:
    if isinstance(listed, list):
        return listed[place] if place < len(listed) else None
    return listed


def _preference(raw: Mapping[str, Any], fields: Fields) -> Iterator[dict[str, Any]]:
    values = fields.pick(raw, ("gold", "prompt_id", "source", "weight", *_ASKED))
    given = look_up(raw, fields.prompt)
    sides = []
    for key in (fields.chosen or "chosen", fields.rejected or "rejected"):
        sides.append(as_messages(look_up(raw, key)))
        if sides[-1] is None:
            raise SetAside(f"missing field {key!r}")
    chosen, rejected = sides
    if are_messages(chosen) and are_messages(rejected) and (len(chosen) > 1 or given is None):
        (prompt, chosen), (other, rejected) = split_conversation(chosen), split_conversation(rejected)
        if prompt != other:
            raise SetAside("chosen and rejected answer different prompts")
        if are_messages(given) and (first := messages_of(prompt_text(given))[0])["role"] == "system":
            values["system"] = first["content"]
    elif given is not None:
        prompt, chosen, rejected = prompt_text(given), completion_text(chosen), completion_text(rejected)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        prompt = _common_beginning(chosen, rejected)
        chosen, rejected = chosen.removeprefix(prompt), rejected.removeprefix(prompt)
    else:
        raise SetAside("chosen and rejected are neither texts nor messages")
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise SetAside("chosen and rejected are neither texts nor messages")
    if chosen == rejected:
        raise SetAside("chosen and rejected are equal")
    if not isinstance(prompt, str) or not prompt.strip():
        raise SetAside("chosen and rejected have no prompt in common")
    values["weight"] = number(values.get("weight"))
    common = asked({**values, "prompt": prompt}) | {"gold": gold_of(values["gold"])}
    common["pair"] = content_key(common["prompt"], chosen, rejected)
    for completion, correct in ((chosen, True), (rejected, False)):
        yield {**common, "completion": completion, "correct": correct}


def _common_beginning(a: str, b: str) -> str:
    """What two texts begin with alike: transcripts up to the assistant's last turn, other texts up to the white space
    before the word in which they part.

    Raises ``SetAside`` where transcripts part in another turn than the assistant's.
    """
    common = a[: _agree(a, b)]
    turns = list(_TURN.finditer(common))
    if turns:
        if next(filter(None, turns[-1].groups())).lower() not in ("assistant", "model"):
            raise SetAside("chosen and rejected answer different prompts")
        return common[: turns[-1].end()]
    if not common or common[-1].isspace():
        return common[:-1]
    return common[: -len(common.rsplit(None, 1)[-1]) - 1]


def _agree(a: str, b: str) -> int:
    """How many characters two texts begin with alike, by halves: whole parts are compared at once."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _steps(steps: Any, raw: Mapping[str, Any], rule: StepRule) -> dict[str, Any]:
    """The completion that rated steps make up, and its verdict: the steps chosen, or else the first ones."""
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise SetAside("steps are not a list")
    texts: list[str] = []
    ratings: list[Any] = []
    for step in steps:
        completions = step.get("completions") or [] if isinstance(step, Mapping) else []
        chosen = step.get("chosen_completion") if isinstance(step, Mapping) else None
        human = step.get("human_completion") if isinstance(step, Mapping) else None
        taken = human if chosen is None and human else _chosen(completions, chosen)
        if not isinstance(taken, Mapping) or not isinstance(taken.get("text"), str):
            raise SetAside("a step has no completion")
        texts.append(taken["text"])
        rating = taken.get("rating", 1 if taken is human else None)
        if rating is not None and not isinstance(rating, int | float):
            raise SetAside("a rating is not a number")
        ratings.append(rating)
    question, label = raw.get("question"), raw.get("label")
    if isinstance(label, Mapping) and label.get("finish_reason") == "bad_problem":
        raise SetAside("its problem was labelled as bad")
    whole = question.get("pre_generated_steps") if isinstance(question, Mapping) else None
    if isinstance(whole, list) and len(whole) >= len(texts) and all(isinstance(text, str) for text in whole):
        texts = list(whole)
    if rule == "all":
        correct = None if None in ratings else min(ratings) >= 0
    else:
        correct = None if not ratings[-1] else ratings[-1] > 0
    if correct and isinstance(label, Mapping) and label.get("finish_reason") == "give_up":
        correct = None
    return {"completion": "\n".join(texts), "correct": correct}


def _chosen(completions: Any, chosen: Any) -> Any:
    """The completion of a step that is chosen, or else the first one; None where there is no such one."""
    place = 0 if chosen is None else chosen
    return completions[place] if isinstance(completions, list) and place in range(len(completions)) else None
