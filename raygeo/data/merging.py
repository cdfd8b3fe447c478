"""From parts of records to the ``rollouts`` table: what only all rows together can decide.

Records stay in parts (``raygeo.data.incoming``), wherever those are kept, and are read column by column; a few hundred
bytes a row are held in memory, no text. The result does not depend on how the records were divided.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygeo.data.grading import (
    GOLD_KINDS,
    Answers,
    Choice,
    Grading,
    GradingChoice,
    choose_grading,
    gold_answer,
    grader,
)
from raygeo.data.incoming import PART_ROWS, record_parts
from raygeo.data.math_grading import UNREADABLE_GOLD, final_answer
from raygeo.data.scanning import Reading, scan
from raygeo.data.validation import (
    SNIPPET_CHARACTERS,
    PromptIdentities,
    Record,
    SetAside,
    Validated,
    plain_gold,
    refuse_too_many,
)
from raygeo.data.verdicts import grade
from raygeo.errors import DataError
from raygeo.tables import SCHEMAS, to_arrow
from raygeo.workload import Rows

_NUMBER = GOLD_KINDS.index("number")
_DECIDED = ("prompt_id", "sample", "reward", "correct", "split")
_LIGHT = pa.schema(
    [
        ("part", pa.int64()),
        ("row", pa.int64()),
        *(SCHEMAS["rollouts"].field(name) for name in (*_DECIDED, "truncated", "pair")),
        ("text_key", pa.binary(16)),
        ("prompt_tokens", pa.int64()),
        ("tokens", pa.int64()),
    ]
)
"""What is known of each rollout while its texts stay on disk, and where they are."""


class Part(NamedTuple):
    """A part of the records: columns of it, and of what its texts hold, by their names."""

    records: Callable[[Sequence[str]], pa.Table]
    scans: Callable[[Sequence[str]], pa.Table]


@dataclass(frozen=True)
class Selected:
    """``fit`` [rows] bool marks what may be graded in each part; all other rows are set aside."""

    fit: list[np.ndarray]
    set_aside: Rows
    grading: Choice
    identities: PromptIdentities

    @property
    def total(self) -> int:
        """Number of records."""
        return sum(map(len, self.fit))


def select(parts: Sequence[Part], grading: GradingChoice, max_set_aside: float) -> Selected:
    """Choose the grading ("auto" is decided by all rows) and set aside what cannot be used, or cannot be graded so.

    Raises ``DataError`` when no record is usable, more than the share ``max_set_aside`` of them is not, or "exact" was
    asked for and all answers stand in boxes.
    """
    identities = PromptIdentities()
    fit: list[np.ndarray] = []
    set_aside: Rows = []
    first_gold: dict[bytes, bytes] = {}
    doubtful: set[bytes] = set()
    golds: Counter[int] = Counter()
    boxed = marked = 0
    for part in parts:
        records = part.records(["reason", "prompt_id"])
        scans = part.scans(["unfit", "prompt_key", "gold_key", "gold_kind", "boxed", "marked"])
        columns = [*_lists(records), *_lists(scans.select(["unfit", "prompt_key", "gold_key"]))]
        bad: dict[int, tuple[str, str]] = {}
        for row, (reason, given, unfit, prompt, gold) in enumerate(zip(*columns, strict=True)):
            try:
                if (why := reason or unfit) is not None:
                    raise SetAside(why)
                if given is not None:
                    identities.identify(prompt, given)
                if gold is not None and first_gold.setdefault(prompt, gold) != gold:
                    doubtful.add(prompt)
            except SetAside as error:
                bad[row] = (str(error), "")
        usable = np.ones(records.num_rows, dtype=bool)
        usable[list(bad)] = False
        fit.append(usable)
        set_aside += _set_aside(part, bad)
        found = scans.filter(pa.array(usable))
        golds.update(found["gold_kind"].drop_null().to_pylist())
        boxed += pc.sum(found["boxed"]).as_py() or 0
        marked += pc.sum(found["marked"]).as_py() or 0
    completions = int(sum(usable.sum() for usable in fit))
    choice = _choose(
        Answers({GOLD_KINDS[kind]: count for kind, count in golds.items()}, completions, boxed, marked), grading
    )
    conflicts = _conflicts(_golds(parts, fit, doubtful), choice.grading)
    for part, usable in zip(parts, fit, strict=True):
        bad = _ungradable(part, usable, conflicts, choice.grading)
        usable[list(bad)] = False
        set_aside += _set_aside(part, bad)
    selected = Selected(fit, set_aside, choice, identities)
    refuse_too_many(set_aside, selected.total, max_set_aside, "rollouts")
    return selected


def number(parts: Sequence[Part], selected: Selected, verdicts: Iterable[pa.Table], max_set_aside: float) -> Validated:
    """Give every row that is fit its verdict, reward, prompt and sample number; undecided ones are set aside.

    ``verdicts`` are those of the parts (``raygeo.data.verdicts``). The ``rollouts`` of the result hold no texts:
    ``assemble`` adds them.

    Raises ``DataError`` when more than the share ``max_set_aside`` of the records cannot be used, or the grader cannot
    read the answers of any.
    """
    set_aside, notes, numbers = list(selected.set_aside), Counter[str](), _SampleNumbers()
    light: list[pa.Table] = []
    graded, answered = 0, False
    for index, (part, usable, verdict) in enumerate(zip(parts, selected.fit, verdicts, strict=True)):
        records = part.records(["prompt_id", "sample", "reward", "correct", "truncated", "pair"])
        scans = part.scans(["prompt_key", "text_key", "prompt_tokens", "tokens"])
        given = list(zip(*_lists(records.select(["prompt_id", "sample", "reward", "correct"])), strict=True))
        prompts = scans["prompt_key"].to_pylist()
        judged = list(zip(*_lists(verdict.select(["graded", "answered", "correct", "note"])), strict=True))
        kept: list[int] = []
        decided: list[tuple[str, int, float, bool, str]] = []
        bad: dict[int, tuple[str, str]] = {}
        for row in np.flatnonzero(usable).tolist():
            prompt_id, sample, reward, correct = given[row]
            was_graded, was_answered, verdict_correct, note = judged[row]
            try:
                if was_graded:
                    graded, answered, correct = graded + 1, answered or was_answered, verdict_correct
                    notes.update([note] if note else [])
                    if correct is None:
                        unreadable = note == UNREADABLE_GOLD
                        raise SetAside("gold cannot be read as mathematics" if unreadable else f"undecided: {note}")
                prompt_id = selected.identities.identify(prompts[row], prompt_id)
                reward = float(correct) if reward is None else reward
                decided.append((prompt_id, numbers.assign(prompt_id, sample), reward, correct, "train"))
                kept.append(row)
            except SetAside as error:
                bad[row] = (str(error), "")
        set_aside += _set_aside(part, bad)
        values = dict(zip(_DECIDED, zip(*decided, strict=True), strict=True)) if kept else dict.fromkeys(_DECIDED, ())
        places = {"part": [index] * len(kept), "row": kept}
        rest = {name: scans[name].take(kept) for name in ("text_key", "prompt_tokens", "tokens")} if kept else {}
        if kept:
            rest |= {name: records[name].take(kept) for name in ("truncated", "pair")}
            light.append(pa.table({name: ({**places, **values, **rest})[name] for name in _LIGHT.names}, schema=_LIGHT))
    refuse_too_many(set_aside, selected.total, max_set_aside, "rollouts")
    rollouts = pa.concat_tables(light).combine_chunks()
    if graded and not answered and not pc.any(rollouts["correct"]).as_py():
        said = ", ".join(f"{count} x {note}" for note, count in notes.most_common())
        first = parts[rollouts["part"][0].as_py()].records(["completion"])["completion"][rollouts["row"][0].as_py()]
        raise DataError(
            f"rollouts: grading {selected.grading.grading!r} finds no answer in any of {graded} completions ({said}). "
            f"The first ends {first.as_py()[-80:]!r}. Answers stand after #### or A: and, for grading 'math', in "
            "\\boxed{} too; or give the verdicts (rollouts.read, fields: correct)."
        )
    return Validated(rollouts, to_arrow("set_aside", set_aside), dict(notes), selected.grading, graded)


def assemble(parts: Sequence[Part], rollouts: pa.Table) -> Iterator[pa.Table]:
    """The rows ``rollouts`` of ``number`` with their texts, as in ``SCHEMAS``: a table a part, in order."""
    columns = SCHEMAS["rollouts"].names
    for part, rows in _by_part(parts, rollouts):
        texts = part.records([name for name in columns if name not in _DECIDED]).take(rows["row"])
        yield pa.table(
            {name: (rows if name in _DECIDED else texts)[name] for name in columns}, schema=SCHEMAS["rollouts"]
        )


def count_marks(parts: Sequence[Part], rollouts: pa.Table) -> Counter[str]:
    """How often the texts of ``rollouts`` hold which special tokens."""
    found: Counter[str] = Counter()
    for part, rows in _by_part(parts, rollouts):
        found.update(pc.list_flatten(part.scans(["marks"])["marks"].take(rows["row"])).to_pylist())
    return found


def token_blocks(parts: Sequence[Part], rollouts: pa.Table) -> Iterator[np.ndarray]:
    """Token ids of ``rollouts`` one after the other, a block a part; those of truncated rows without the end."""
    for part, rows in _by_part(parts, rollouts):
        ids = part.scans(["ids"])["ids"].take(rows["row"]).combine_chunks()
        flat = ids.flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(ids.value_lengths().to_numpy(zero_copy_only=False))
        yield np.delete(flat, ends[rows["truncated"].to_numpy(zero_copy_only=False)] - 1)


def token_lengths(rollouts: pa.Table) -> np.ndarray:
    """Lengths of the sequences that ``token_blocks`` gives: [N] int64."""
    return rollouts["tokens"].to_numpy() - rollouts["truncated"].to_numpy().astype(np.int64)


def validate(
    records: Iterable[Record],
    *,
    grading: GradingChoice = "exact",
    max_set_aside: float = 0.05,
    unfit: Callable[[str, str], str | None] = lambda prompt, completion: None,
    text: Callable[[str], str] = str,
) -> Validated:
    """Check, grade and number the records of one or several readers, in order; every row is in the split "train".

    A verdict missing from a record comes from grading its completion against its gold answer, or, without a gold
    answer, from its reward being positive; a missing reward is the verdict's 1 or 0. ``grading`` "auto" is decided by
    all rows (see ``choose_grading``). ``prompt_id`` defaults to a hash of the prompt. ``sample`` keeps a given number
    that is free within its prompt and is the next free one otherwise. ``unfit(prompt, completion)`` may give a further
    reason to set a row aside, such as its length. So are records whose ``logprobs`` are not log-probabilities,
    which shows that they are not what they are taken for; all rows of a prompt whose gold answers contradict each
    other; and rows whose verdict could not be decided, which are not wrong. Duplicates of (prompt, completion) are
    kept: ``counts`` counts them.

    Everything is held in memory; ``raygeo.pipeline.rollouts`` takes the same steps with parts in a store.

    Raises ``DataError`` when no record is usable, more than the share ``max_set_aside`` of them is not, or the grader
    cannot read the answers of any.
    """
    read = list(record_parts(records, PART_ROWS))
    scans = [scan(part, lambda pairs: [Reading(unfit(*pair)) for pair in pairs]) for part in read]
    parts = [Part(one.select, other.select) for one, other in zip(read, scans, strict=True)]
    selected = select(parts, grading, max_set_aside)
    how = selected.grading.grading
    with grader(how) as judge:
        verdicts = [grade(*pair, judge, how, text) for pair in zip(read, scans, strict=True)]
    found = number(parts, selected, verdicts, max_set_aside)
    table = pa.concat_tables(assemble(parts, found.rollouts))
    return Validated(table, found.set_aside, found.notes, found.grading, found.graded)


def _lists(table: pa.Table) -> list[list]:
    return [column.to_pylist() for column in table.columns]


def _by_part(parts: Sequence[Part], rollouts: pa.Table) -> Iterator[tuple[Part, pa.Table]]:
    """The parts that ``rollouts`` stand in, with the rows of each."""
    bounds = np.searchsorted(rollouts["part"].to_numpy(), np.arange(len(parts) + 1))
    for part, start, end in zip(parts, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if end > start:
            yield part, rollouts.slice(start, end - start)


def _set_aside(part: Part, bad: Mapping[int, tuple[str, str]]) -> Rows:
    """Rows of ``set_aside`` for the rows ``bad`` of a part: of each, the reason and what goes before its text."""
    if not bad:
        return []
    found = part.records(["origin", "line", "snippet"]).take(sorted(bad)).to_pylist()
    return [
        {
            "source": row["origin"],
            "line": row["line"],
            "reason": reason,
            "text": f"{detail}: {row['snippet']}"[:SNIPPET_CHARACTERS] if detail else row["snippet"],
        }
        for row, (_, (reason, detail)) in zip(found, sorted(bad.items()), strict=True)
    ]


def _choose(answers: Answers, grading: GradingChoice) -> Choice:
    """Decide the grading. Raises ``DataError`` where "exact" was asked for and all answers stand in boxes."""
    if grading == "auto":
        return choose_grading(answers)
    if grading == "exact" and answers.boxed and not answers.marked:
        raise DataError(
            f"rollouts: {answers.boxed} of {answers.completions} completions answer in \\boxed{{}} and none after #### "
            "or A:, where grading 'exact' looks for answers; set rollouts.grading to 'math' or 'auto'."
        )
    return Choice(grading, "the study says so")


def _golds(parts: Sequence[Part], fit: Sequence[np.ndarray], doubtful: set[bytes]) -> dict[bytes, set[str]]:
    """The gold answers of every prompt of ``doubtful``."""
    golds: defaultdict[bytes, set[str]] = defaultdict(set)
    if doubtful:
        for part, usable in zip(parts, fit, strict=True):
            keys = part.scans(["prompt_key"])["prompt_key"].to_pylist()
            for row, gold in enumerate(part.records(["gold"])["gold"].to_pylist()):
                if usable[row] and gold is not None and keys[row] in doubtful:
                    golds[keys[row]].add(gold)
    return golds


def _conflicts(golds: Mapping[bytes, set[str]], grading: Grading) -> dict[bytes, str]:
    """The gold answers of every prompt that has contradicting ones: ``18`` and ``18.0`` are the same answer.

    What the grader cannot read as an answer contradicts nothing.
    """
    doubtful = {prompt: sorted(found) for prompt, found in golds.items()}
    if grading == "exact":
        different = {p: [gold for gold in found if gold_answer(gold) is not None] for p, found in doubtful.items()}
        return {p: _listed(found) for p, found in different.items() if len({plain_gold(gold) for gold in found}) > 1}
    pairs = [(p, a, b) for p, found in doubtful.items() for a, b in permutations(found, 2)]
    equal: defaultdict[tuple[bytes, frozenset[str]], bool] = defaultdict(bool)  # in at least one order
    unreadable: set[str] = set()
    if pairs:
        with grader("math") as judge:
            verdicts = judge.grade_many([(rf"\boxed{{{final_answer(a) or a}}}", b) for _, a, b in pairs])
        for (p, a, b), verdict in zip(pairs, verdicts, strict=True):
            equal[p, frozenset((a, b))] |= verdict.correct is True
            unreadable |= {b} if verdict.note == UNREADABLE_GOLD else set()
    return {
        p: _listed(found)
        for p, found in doubtful.items()
        if not all(equal[p, frozenset(pair)] or unreadable & set(pair) for pair in combinations(found, 2))
    }


def _listed(golds: Sequence[str]) -> str:
    return "golds " + ", ".join(repr(gold[-40:]) for gold in golds)


def _ungradable(
    part: Part, usable: np.ndarray, conflicts: Mapping[bytes, str], grading: Grading
) -> dict[int, tuple[str, str]]:
    """The usable rows of a part whose gold answers conflict, or hold no number where one is needed."""
    bad: dict[int, tuple[str, str]] = {}
    if grading == "exact":
        kinds = part.scans(["gold_kind"])["gold_kind"].fill_null(_NUMBER).to_numpy()
        ungraded = part.records(["correct"])["correct"].is_null().to_numpy()
        bad |= dict.fromkeys(
            np.flatnonzero(usable & ungraded & (kinds != _NUMBER)).tolist(), ("gold is not a number", "")
        )
    if conflicts:
        for row, prompt in enumerate(part.scans(["prompt_key"])["prompt_key"].to_pylist()):
            if usable[row] and prompt in conflicts:
                bad[row] = ("gold differs from another of its prompt", conflicts[prompt])
    return bad


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
