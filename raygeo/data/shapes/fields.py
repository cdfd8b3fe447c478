"""Where a record holds what: the key of each field."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import PrivateAttr

from raygeo.data.validation import SetAside
from raygeo.settings import Settings


class Fields(Settings):
    """The key of each field in a record; ``meta.score`` looks into nested records, ``samples.0`` into lists.

    ``prompt`` and ``completion`` must be there. Any other field must be there if the user gives another key than the
    default for it, and may be absent otherwise.
    """

    later: ClassVar[frozenset[str]] = frozenset(
        {"messages", "chosen", "rejected", "label", "finish_reason", "steps", "system", "input"}
        | {"weight", "top_ids", "top_logprobs", "top_tail"}
    )
    """Fields that keys of rollouts leave out where they are null."""

    prompt: str = "prompt"
    """A text, or messages (``role``, ``content``)."""
    completion: str | tuple[str, ...] = "completion"
    """A text or messages; a list of texts, or several keys, where a record holds several completions."""
    gold: str = "gold"
    """The gold answer, or a text that ends in it."""
    solution: str = "solution"
    """A worked solution of the problem (prompts only)."""
    reward: str = "reward"
    correct: str = "correct"
    truncated: str = "truncated"
    """True when the completion was cut by a length limit."""
    prompt_id: str = "prompt_id"
    sample: str = "sample"
    source: str = "source"
    """Who wrote the completion; by default the name of the file or data set."""
    logprobs: str = "logprobs"
    """Log-probabilities of the completion's tokens under the model that wrote it, at its sampling temperature: a list
    with one number a token, end-of-text included unless the completion was cut."""
    weight: str | None = None
    """What the rollout, or the pair, counts in losses: a number from 0. Without it all count 1."""
    top_ids: str | None = None
    """Ids of a teacher's likeliest tokens in the student's vocabulary: for each completion token (as ``logprobs``) a
    list, all of one length."""
    top_logprobs: str | None = None
    """Their log-probabilities, in lists alike."""
    top_tail: str | None = None
    """The probability that the teacher leaves to all other tokens: one number a completion token. By default it is
    taken as what the others leave of 1."""
    messages: str | None = None
    """A conversation whose last message is the completion."""
    chosen: str | None = None
    """The preferred completion, or a conversation that ends in it."""
    rejected: str | None = None
    """The other one."""
    label: str | None = None
    """True for a completion that is wanted, false for one that is not (TRL's unpaired preference)."""
    finish_reason: str | None = None
    """Why the completion ended: ``length`` and its synonyms, such as ``max_tokens``, are truncated."""
    steps: str | None = None
    """Steps of a solution, each with its rated completions (PRM800K's ``label.steps``)."""
    system: str | None = None
    """A text that becomes the system message before the prompt, where the prompt has none of its own."""
    input: str | None = None
    """A text that belongs to the prompt and follows it after a blank line (Alpaca's ``input``)."""

    _found: frozenset[str] = PrivateAttr(frozenset())

    @property
    def found(self) -> frozenset[str]:
        """The fields that were recognised: they may be absent from a record whatever their keys."""
        return self._found

    def with_found(self, keys: Mapping[str, Any]) -> Self:
        """These fields with the keys of those that were recognised."""
        new = self.model_copy(update=dict(keys))
        new._found = self._found | frozenset(keys)
        return new

    def pick(self, raw: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Return the values of ``names`` found in ``raw``; raise ``SetAside`` when a required one is missing."""
        values: dict[str, Any] = {}
        for name in names:
            key = getattr(self, name)
            if key is None:
                continue
            values[name] = [look_up(raw, each) for each in key] if isinstance(key, tuple) else look_up(raw, key)
            named = key != type(self).model_fields[name].default and name not in self._found
            required = named or name in ("prompt", "completion")
            if required and (values[name] is None or (isinstance(key, tuple) and not any(values[name]))):
                raise SetAside(f"missing field {key!r}")
        return values

    def named(self) -> Iterator[tuple[str, str]]:
        """Every field with its key, one pair for each of several keys."""
        for name in type(self).model_fields:
            key = getattr(self, name)
            if key is not None:
                yield from ((name, each) for each in (key if isinstance(key, tuple) else (key,)))

    def columns(self) -> set[str]:
        """Return the top-level columns that may be needed of a columnar file."""
        paths = {key for _, key in self.named()}
        return paths | {path.partition(".")[0] for path in paths}


def look_up(raw: Any, path: str) -> Any:
    """Return the value at a dotted ``path``; None when it is absent. A key that itself contains dots goes first."""
    if isinstance(raw, Mapping) and path in raw:
        return raw[path]
    for part in path.split("."):
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list) and part.isdecimal() and int(part) < len(raw):
            raw = raw[int(part)]
        else:
            return None
    return raw
