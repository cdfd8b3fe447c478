"""Problems with gold answers, read whole."""

import logging
from dataclasses import dataclass

from raygeo.data.readers.base import PromptReader
from raygeo.data.validation import (
    PromptIdentities,
    Record,
    SetAside,
    gold_text,
    identifier,
    optional_text,
    prompt_digest,
    refuse_too_many,
    required_text,
    set_aside_row,
)
from raygeo.workload import Rows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A problem: what the model is given, the answer it is graded against, and a worked solution if there is one."""

    prompt_id: str
    prompt: str
    gold: str
    solution: str | None


def read_prompts(reader: PromptReader, *, max_set_aside: float = 0.0) -> list[Prompt]:
    """Read problems in order; the ids are given ones or hashes of the prompts, so they are unique.

    Raises ``DataError`` when more than the share ``max_set_aside`` of records is unusable (blank, without gold answer,
    or a problem that already occurred), by default at the first one: a benchmark is read whole or not at all.
    """
    set_aside: Rows = []
    identities = PromptIdentities()
    prompts: dict[str, Prompt] = {}
    for record in reader.prompts():
        try:
            prompt = _prompt(record, identities)
            if prompt.prompt_id in prompts:
                raise SetAside("prompt occurs in an earlier record")
            prompts[prompt.prompt_id] = prompt
        except SetAside as reason:
            set_aside.append(set_aside_row(record, str(reason)))
    total = len(prompts) + len(set_aside)
    refuse_too_many(set_aside, total, max_set_aside, "prompts", by_setting=False)
    if set_aside:
        _log.warning("%d of %d prompts could not be used", len(set_aside), total)
    return list(prompts.values())


def _prompt(record: Record, identities: PromptIdentities) -> Prompt:
    if record.error is not None:
        raise SetAside(record.error)
    text = required_text(record.values, "prompt")
    gold = gold_text(record.values)
    if gold is None:
        raise SetAside("missing field 'gold'")
    prompt_id = identities.identify(prompt_digest(text), identifier(record.values))
    return Prompt(prompt_id, text, gold, optional_text(record.values, "solution"))
