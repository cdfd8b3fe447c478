"""The study itself: what went in, how long it took, and where its tables are."""

from collections.abc import Iterable

from raygeo.data.validation import GRADED
from raygeo.report import typeset
from raygeo.report.sheets import Fact, Sheet
from raygeo.report.view import View


def facts(view: View) -> list[Fact]:
    """Prompts, rollouts, how many are correct, mixed, truncated and set aside, and the runs made from them."""
    found = []
    if view.tables["rollouts"].num_rows:
        rollouts = view.tables["rollouts"].select(["prompt_id", "split", "correct", "truncated"]).to_pandas()
        verdicts, truncated = (rollouts[column].fillna(False).astype(bool) for column in ("correct", "truncated"))
        prompts = verdicts.groupby(rollouts.prompt_id)
        mixed = int((prompts.any() & ~prompts.all()).sum())
        held_out = rollouts[rollouts.split == "heldout"].prompt_id.nunique()
        kinds = f"prompts, {typeset.count(held_out)} held out" if held_out else "prompts"
        found += [
            Fact(typeset.count(prompts.ngroups), kinds),
            Fact(typeset.count(len(rollouts)), "graded rollouts"),
            Fact(typeset.percent(verdicts.mean()), "of rollouts correct"),
            Fact(typeset.percent(mixed / prompts.ngroups), "of prompts mixed: right and wrong"),
            Fact(typeset.count(truncated.sum()), "rollouts truncated"),
        ]
        found.append(Fact(typeset.count(len(view.frame("set_aside"))), "input rows set aside"))
    if len(view.runs):
        runs = {*view.runs.run} - view.legs
        found.append(Fact(f"{len(runs - view.failed)} of {len(runs)}", "runs finished"))
    return found


def counts(view: View) -> Sheet:
    """Every count the stages recorded; of how rollouts were graded, what it counts is said."""
    frame = view.frame("counts")
    names = [f"had no verdict before, {name}" if name.startswith(GRADED) else name for name in frame["name"]]
    rows = [(*what, typeset.count(n)) for *what, n in zip(frame.stage, names, frame.value, strict=True)]
    return Sheet(["stage", "what", "count"], rows, frozenset({"stage", "what"}))


def set_aside(view: View) -> Sheet:
    """Input rows set aside, by source and reason."""
    groups = view.frame("set_aside").groupby(["reason", "source"], dropna=False).size().sort_values(ascending=False)
    rows = [(str(reason), str(source), typeset.count(n)) for (reason, source), n in groups.items()]
    return Sheet(["reason", "source", "rows"], rows, frozenset({"reason", "source"}))


def timings(stages: Iterable[tuple[str, float, int, int]]) -> Sheet:
    """Time and units of each stage, with their total."""
    stages = list(stages)
    rows = [(name, typeset.duration(s), typeset.count(done), typeset.count(reused)) for name, s, done, reused in stages]
    if rows:
        rows.append(("all stages", typeset.duration(sum(s for _, s, _, _ in stages)), "", ""))
    return Sheet(["stage", "time", "units done", "units reused"], rows, frozenset({"stage"}))


def files(view: View) -> Sheet:
    """The tables behind the page that hold anything, with their sizes and columns."""
    rows = [
        (f"tables/{name}.parquet", typeset.count(view.tables[name].num_rows), ", ".join(view.tables[name].column_names))
        for name in view.tables
        if view.tables[name].num_rows
    ]
    return Sheet(["file in the store", "rows", "columns"], rows, frozenset({"file in the store", "columns"}))
