"""What all readers of rollouts and prompts have in common: settings that yield records lazily."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, field_validator

from raygeo.data.shapes.convert import StepRule, asked, gold_of, rollouts
from raygeo.data.shapes.fields import Fields
from raygeo.data.shapes.recognition import (
    RewardScale,
    judges_by_reward,
    lacking_fields,
    recognise,
    recognise_prompts,
    refuse_lacking,
    said,
)
from raygeo.data.validation import Record, SetAside
from raygeo.generation.renderer.conversation import conversation_text, is_conversation, messages_of
from raygeo.settings import Settings

_log = logging.getLogger(__name__)
_PROMPT_FIELDS = ("prompt", "gold", "solution", "prompt_id", "input")
_PEEKED = 100
_ELSEWHERE = {"messages": {"prompt", "completion"}, "preference": {"completion"}, "steps": {"completion"}}


class Reader(Settings):
    """The base of all readers: one is a module of its own beside this one, and a ``type`` that studies name it by.

    ``reader_revision`` counts the ways a reader has read the same source: whoever changes a record raises it, and
    stores make what was read anew.
    """

    reader_revision: ClassVar[int] = 1

    template: str = "{prompt}"
    """The text a model is given, with ``{prompt}`` where the question stands."""
    limit: int | None = Field(default=None, ge=1)
    """Read only this many records, the first ones."""

    @field_validator("template")
    @classmethod
    def _has_one_prompt(cls, template: str) -> str:
        if template.count("{prompt}") != 1:
            raise ValueError("the template must contain {prompt} exactly once")
        return template

    def rollouts(self) -> Iterator[Record]:
        """Yield rollouts. Raises ``DataError`` when the source cannot be opened; bad records are yielded as errors."""
        return self._convert(self._rollouts)

    def resolved(self) -> Self:
        """The reader with whatever it finds out of the source itself written into its settings."""
        return self

    def check(self) -> None:
        """See that the source can be opened, and that rollouts can be made of its first records.

        Raises:
            DataError: it cannot, or they cannot be.
        """
        self.resolved()

    def made_of(self) -> dict[str, Any]:
        """What keys of rollouts hold of the settings; the places of files are not among them."""
        return self.model_dump(mode="json", exclude={"path"})

    def described(self) -> str:
        """How the source is read, in a few words."""
        return str(getattr(self, "type", ""))

    @abstractmethod
    def fingerprint(self) -> str:
        """A key of what would be read: the content of files, or the name and revision of a data set."""

    @abstractmethod
    def _raw(self) -> Iterator[Record]:
        """Yield records whose ``values`` are as found."""

    @abstractmethod
    def _rollouts(self, record: Record) -> Iterator[Record]:
        """Convert one readable raw record to rollouts; may raise ``SetAside``."""

    def _convert(self, convert: Any) -> Iterator[Record]:
        for record in islice(self._raw(), self.limit):
            if record.error is not None:
                yield record
                continue
            try:
                yield from convert(record)
            except SetAside as reason:
                yield failed(record, str(reason))

    def _with(self, record: Record, values: Mapping[str, Any]) -> Record:
        prompt = values["prompt"]
        if isinstance(prompt, str) and prompt.strip():  # a blank question must stay visible under any template
            values = {**values, "prompt": self._asked(prompt)}
        return Record(record.origin, record.line, values, text=record.text)

    def _asked(self, prompt: str) -> str:
        """The prompt in the template; of a conversation, its last message."""
        if not is_conversation(prompt):
            return self.template.replace("{prompt}", prompt)
        *earlier, last = messages_of(prompt)
        return conversation_text([*earlier, {**last, "content": self.template.replace("{prompt}", last["content"])}])


class PromptReader(Reader):
    """A reader that also gives prompts with gold answers, for benchmarks and for sampling."""

    def prompts(self) -> Iterator[Record]:
        """Yield prompts: the fields prompt, gold, solution and prompt_id."""
        return self._convert(self._prompts)

    @abstractmethod
    def _prompts(self, record: Record) -> Iterator[Record]:
        """Convert one readable raw record to prompts; may raise ``SetAside``."""


class MappedReader(PromptReader):
    """A reader of records whose shape and fields are recognised by their names, or named by the user."""

    fields: Fields = Fields()
    """Which key holds which field; those that are left out are recognised."""
    shape: Literal["auto", "flat", "messages", "preference", "unpaired", "lists", "steps"] = "auto"
    """What a record is: one rollout (``flat``); a conversation (``messages``); two completions, preferred and not
    (``preference``); one that is wanted or not (``unpaired``); several of one prompt (``lists``); or a solution with
    rated steps (``steps``). ``auto`` recognises it from the first records."""
    threshold: float | None = None
    """A completion is right if its reward is at least this much; by default, of rewards that come with neither verdict
    nor gold answer, if it is above 0."""
    verdict: bool | None = None
    """The verdict on every completion that brings none: true for a file of correct solutions."""
    step_rule: StepRule = "last"
    """How rated steps make a verdict: ``last`` takes that of the last step, ``all`` asks that none be rated wrong."""

    _resolved: bool = PrivateAttr(False)
    _by_reward: bool = PrivateAttr(False)

    def rollouts(self) -> Iterator[Record]:
        """Yield rollouts; bad records are yielded as errors.

        Raises ``DataError`` when the source cannot be opened, and at its end where rewards were the only verdicts and
        do not tell which of them are right.
        """
        reader = self.resolved()
        unknown: Counter[str] = Counter()
        scale, judged = RewardScale(), self.threshold is not None or self.verdict is not None
        for record in reader._convert(partial(reader._graded, unknown=unknown)):
            alone = record.error is None and all(record.values.get(name) is None for name in ("correct", "gold"))
            if alone and not judged:
                scale.see(record.values.get("reward"))
            yield record
        scale.refuse_unknown(reader.fields.reward)
        if scale.seen and not reader._by_reward:
            _log.warning(
                "%d rollouts have neither a verdict nor a gold answer and are right where %r is above 0",
                scale.seen,
                reader.fields.reward,
            )
        for reason, number in unknown.most_common():
            _log.warning(
                "%d rollouts ended for %r, which is not known and taken as whole, not cut by a length limit; where it "
                "is one, bring a field `truncated`",
                number,
                reason,
            )

    def prompts(self) -> Iterator[Record]:
        """Yield prompts: the fields prompt, gold, solution and prompt_id."""
        reader = self._with_fields(recognise_prompts(self._peek(), self.fields))
        return reader._convert(reader._prompts)

    def resolved(self) -> Self:
        """The reader with the shape and the fields of the source's first records.

        Raises ``DataError`` where they have rewards alone, on a scale that nothing says.
        """
        if self._resolved:
            return self
        samples = self._peek()
        shape, fields = recognise(samples, self.fields, None if self.shape == "auto" else self.shape)
        found = self._with_fields(fields, shape=shape)
        if self.threshold is None and self.verdict is None:
            found._by_reward = judges_by_reward(samples, fields, shape)
        return found

    def check(self) -> None:
        """As ``Reader.check``; with the keys that there are, where no record has what is needed.

        Where none of the first has it, all others are looked at, and it is said at once that this takes long.
        """
        found, samples = self.resolved(), self._peek()
        how = found.fields, found.shape, self.verdict
        lacking = lacking_fields(samples, *how)
        if not lacking:
            return
        if len(samples) == _PEEKED:
            _log.warning(
                "%s: none of its first %d records has a %s; all others are read once to see whether one has. Is it "
                "under another key? %s",
                next(iter(self._raw())).origin,
                len(samples),
                said(lacking),
                ", ".join(dict.fromkeys(key for sample in samples for key in sample)),
            )
        late: dict[str, Any] = {}
        for record in self._raw():
            if record.error is None and not lacking_fields([record.values], *how):
                return
            late |= {key: value for key, value in record.values.items() if value is not None and key not in late}
        refuse_lacking([*samples, late], found.fields, lacking, len(samples))

    def made_of(self) -> dict[str, Any]:
        """What keys of rollouts hold of the settings: those that came later only where they say something."""
        made = super().made_of()
        made["fields"] = {n: key for n, key in made["fields"].items() if key is not None or n not in Fields.later}
        if self.fields.found or self.fields.finish_reason or self.shape not in ("auto", "flat"):
            made["found"] = sorted(self.fields.found)
        later = {"shape": ("auto", "flat"), "threshold": (None,), "verdict": (None,), "step_rule": ("last",)}
        return {name: value for name, value in made.items() if name not in later or value not in later[name]}

    def described(self) -> str:
        """The shape, and the key of each field that was found or named."""
        defaults = dict(Fields().named())
        whole = {"prompt", "completion"} - _ELSEWHERE.get(self.shape, set())
        named = [f"{n} {key!r}" for n, key in self.fields.named() if n in whole or key != defaults.get(n)]
        rules = [f"right from a reward of {self.threshold:g}"] if self.threshold is not None else []
        if self._by_reward:
            rules.append(f"right where {self.fields.reward!r} is above 0")
        if self.verdict is not None:
            rules.append(f"{'right' if self.verdict else 'wrong'} where there is no verdict")
        if self.shape == "steps":
            rules.append(f"verdict by the rule {self.step_rule!r}")
        return f"{super().described()}, {self.shape}: {', '.join([*named, *rules])}"

    def wants(self, column: str) -> bool:
        """Whether a column of the source may be needed: any until it is known what its records are."""
        return not self._resolved or column in self.fields.columns()

    def _with_fields(self, fields: Fields, **more: Any) -> Self:
        reader = self.model_copy(update={"fields": fields, **more})
        reader._resolved = True
        return reader

    def _peek(self) -> list[Mapping[str, Any]]:
        """The first records that can be read, of this reader as it is."""
        return [record.values for record in islice(self._raw(), _PEEKED) if record.error is None]

    def _rollouts(self, record: Record) -> Iterator[Record]:
        return self._graded(record, Counter())

    def _graded(self, record: Record, unknown: Counter[str]) -> Iterator[Record]:
        """The rollouts of a record; reasons why they ended that are not known are counted in ``unknown``."""
        assert self.shape != "auto"
        for values in rollouts(record.values, self.shape, self.fields, self.step_rule):
            if isinstance(values, SetAside):
                yield failed(record, str(values))
                continue
            if "finish_reason" in values:
                unknown[str(values.pop("finish_reason"))] += 1
            if values.get("source") is None:
                values["source"] = Path(record.origin).stem
            if values.get("correct") is None:
                values["correct"] = self._verdict(values.get("reward"))
            yield self._with(record, values)

    def _verdict(self, reward: Any) -> bool | None:
        """The verdict that the settings make of a reward, if they say anything."""
        if self.threshold is not None and isinstance(reward, int | float | Decimal):
            return bool(reward >= self.threshold)
        return self.verdict

    def _prompts(self, record: Record) -> Iterator[Record]:
        values = self.fields.pick(record.values, _PROMPT_FIELDS)
        yield self._with(record, asked(values) | {"gold": gold_of(values["gold"])})


def failed(record: Record, reason: str) -> Record:
    """The record as one that cannot be read, and why."""
    return Record(record.origin, record.line, record.values, error=reason, text=record.text)
