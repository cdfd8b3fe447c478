"""Verdicts on the records that brought none, part by part; every actor holds one grader."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import pyarrow as pa

from raygeo.data.grading import GOLD_KINDS, RULES, Grader, Grading, grader
from raygeo.data.incoming import RECORDS
from raygeo.data.scanning import SCANS
from raygeo.generation.renderer import Renderer
from raygeo.store import Store
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

VERDICTS = schema(
    """One row a record: whether it was graded, whether an answer was found, whether it is right (null: not decided),
    and what the grader had to say.""",
    "graded, answered, correct: flag; note: text",
)


def grade(records: pa.Table, scans: pa.Table, judge: Grader, grading: Grading, text: Callable[[str], str]) -> pa.Table:
    """Grade what ``text`` makes of the completions of a part's usable rows that have no verdict, but a gold answer."""
    rows: Rows = [{"graded": False}] * records.num_rows
    names = ("reason", "correct", "gold", "completion")
    columns = [*(records[name].to_pylist() for name in names), *(scans[n].to_pylist() for n in ("unfit", "gold_kind"))]
    graded = {
        row: (text(completion), gold)
        for row, (reason, correct, gold, completion, unfit, kind) in enumerate(zip(*columns, strict=True))
        if reason is None and unfit is None and correct is None and gold is not None
        if grading == "math" or GOLD_KINDS[kind] == "number"
    }
    for row, verdict in zip(graded, judge.grade_many(list(graded.values())), strict=True):
        rows[row] = {
            "graded": True,
            "answered": verdict.extracted is not None,
            "correct": verdict.correct,
            "note": verdict.note,
        }
    return pa.Table.from_pylist(rows, schema=VERDICTS)


class Grade(Workload):
    """One task a part of the records (units ``parts``, scanned in units ``scans``) -> table ``rollout_verdicts``."""

    name = "rollout verdicts"
    tables: ClassVar = {"rollout_verdicts": VERDICTS}

    def __init__(self, store: Store, parts: Sequence[str], scans: Sequence[str], grading: Grading, renderer: Renderer):
        self.store, self.parts, self.scans, self.grading, self.renderer = store, parts, scans, grading, renderer
        self.uses = {"grading": RULES}

    def tasks(self) -> list[Task]:
        """One task a part."""
        return [
            Task(self.key(self.grading, scan), 1.0, (part, scan), f"part {i} of the rollouts")
            for i, (part, scan) in enumerate(zip(self.parts, self.scans, strict=True))
        ]

    def setup(self) -> Grader:
        """The grader; that of mathematics starts its process when first needed."""
        return grader(self.grading)

    def compute(self, state: Grader, payload: tuple[str, str]) -> dict[str, Rows | pa.Table]:
        """Grade one part."""
        part, scan = payload
        records = self.store.read_unit("rollout_records", part, RECORDS)
        scans = self.store.read_unit("rollout_scans", scan, SCANS.remove(SCANS.get_field_index("ids")))
        return {"rollout_verdicts": grade(records, scans, state, self.grading, self.renderer.without_end)}
