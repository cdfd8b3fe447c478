"""What the texts of a part of the records hold: tokens, marks, answers, and identities in a few bytes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from raygeo.data.grading import GOLD_KINDS, gold_kind, last_boxed, marked_answer
from raygeo.data.incoming import RECORDS
from raygeo.data.revisions import renderer_revision
from raygeo.data.validation import plain_gold, prompt_digest
from raygeo.generation.renderer import Renderer
from raygeo.store import Store
from raygeo.workload import Rows, Task, Workload

SCANS = pa.schema(
    [
        ("unfit", pa.large_string()),
        ("prompt_key", pa.binary(16)),
        ("text_key", pa.binary(16)),
        ("gold_key", pa.binary(16)),
        ("gold_kind", pa.int8()),
        ("marked", pa.bool_()),
        ("boxed", pa.bool_()),
        ("marks", pa.large_list(pa.large_string())),
        ("prompt_tokens", pa.int64()),
        ("tokens", pa.int64()),
        ("ids", pa.large_list(pa.int32())),
    ]
)
"""One row a record, null where the record cannot be used.

``unfit`` is why no student can learn from it. Equal ``prompt_key`` are equal prompts, equal ``text_key`` equal prompts
with equal completions, equal ``gold_key`` gold answers that are equal at sight; ``gold_kind`` indexes ``GOLD_KINDS``.
``marked`` and ``boxed`` say how the completion gives its answer, ``marks`` which special tokens the texts hold. ``ids``
are the ``tokens`` of prompt and ended completion, of which the first ``prompt_tokens`` are the prompt's.
"""


class Reading(NamedTuple):
    """A prompt and a completion as a student reads them, and why it cannot, if it cannot."""

    unfit: str | None = None
    marks: Sequence[str] = ()
    prompt_tokens: int = 0
    ids: Any = ()


class Limit(NamedTuple):
    """The most tokens that a sequence may have, and what says so."""

    tokens: int
    of: Literal["the context", "max_tokens"] = "the context"

    def __str__(self) -> str:
        return f"{self.of} ({self.tokens})"


Reads = Callable[[Sequence[tuple[str, str]]], Sequence[Reading]]
"""How prompts and completions are read."""


def read_as(renderer: Renderer, limit: Limit | None, pairs: Sequence[tuple[str, str]]) -> list[Reading]:
    """Tokenise ``pairs`` together; what is beyond the ``limit``, or no model could be given or write, is unfit."""
    refused = {prompt: renderer.unfit_prompt(prompt) for prompt in dict.fromkeys(prompt for prompt, _ in pairs)}
    sequences = iter(renderer.encode_many([pair for pair in pairs if refused[pair[0]] is None]))
    readings = []
    for pair in pairs:
        if (why := refused[pair[0]]) is not None:
            readings.append(Reading(why))
            continue
        sequence = next(sequences)
        head = sequence.prompt_length
        why = renderer.unfit_completion(pair[1], sequence.ids[head:].tolist())
        if why is None and limit is not None and len(sequence) > limit.tokens:
            why = f"{'prompt' if head >= limit.tokens else 'prompt and completion'} longer than {limit}"
        readings.append(Reading(why, renderer.own_marks(*pair), head, sequence.ids.astype(np.int32)))
    return readings


def scan(records: pa.Table, reads: Reads) -> pa.Table:
    """Scan a part: ``RECORDS`` in, ``SCANS`` out, row by row."""
    kind, key = cache(gold_kind), cache(_gold_key)
    columns = (records[name].to_pylist() for name in ("reason", "prompt", "completion", "gold"))
    usable = [(row, *rest) for row, (reason, *rest) in enumerate(zip(*columns, strict=True)) if reason is None]
    rows: Rows = [{}] * records.num_rows
    readings = reads([(prompt, completion) for _, prompt, completion, _ in usable])
    for (row, prompt, completion, gold), reading in zip(usable, readings, strict=True):
        digest = prompt_digest(prompt)
        rows[row] = {
            "unfit": reading.unfit,
            "prompt_key": digest,
            "text_key": hashlib.sha256(digest + completion.encode()).digest()[:16],
            "gold_key": None if gold is None else key(gold),
            "gold_kind": None if gold is None else GOLD_KINDS.index(kind(gold)),
            "marked": marked_answer(completion) is not None,
            "boxed": last_boxed(completion) is not None,
            "marks": reading.marks,
            "prompt_tokens": reading.prompt_tokens,
            "tokens": len(reading.ids),
            "ids": reading.ids,
        }
    return pa.Table.from_pylist(rows, schema=SCANS)


def _gold_key(gold: str) -> bytes:
    return hashlib.sha256(repr(plain_gold(gold)).encode()).digest()[:16]


@dataclass(frozen=True)
class Scanner:
    """A student that reads: its ``renderer``, its key, and how long what it reads may be, if there is a limit."""

    renderer: Renderer
    key: str
    limit: Limit | None


class Scan(Workload):
    """One task a part of the records (units ``parts``) -> table ``rollout_scans``."""

    name = "rollout tokens"
    tables: ClassVar = {"rollout_scans": SCANS}

    def __init__(self, store: Store, parts: Sequence[str], scanner: Scanner):
        self.store, self.parts, self.scanner = store, parts, scanner
        self.uses = renderer_revision(type(scanner.renderer))

    def tasks(self) -> list[Task]:
        """One task a part."""
        limit = self.scanner.limit
        how = (self.scanner.renderer.identity, self.scanner.key, None if limit is None else limit.tokens)
        return [Task(self.key(*how, part), 1.0, part, f"part {i} of the rollouts") for i, part in enumerate(self.parts)]

    def setup(self) -> None:
        """Nothing is shared between parts."""

    def compute(self, state: None, payload: str) -> dict[str, Rows | pa.Table]:
        """Scan one part."""
        records = self.store.read_columns(
            RECORDS, "rollout_records", payload, ["reason", "prompt", "completion", "gold"]
        )
        return {"rollout_scans": scan(records, partial(read_as, self.scanner.renderer, self.scanner.limit))}
