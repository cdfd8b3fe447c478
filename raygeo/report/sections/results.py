"""Every run in one row, the trials of a sweep, and tests between runs."""

import json

import pandas as pd

from raygeo.report import typeset
from raygeo.report.sections.parts import (
    Cell,
    Sheet,
    against_reference,
    at,
    barrier_cell,
    first_probe,
    section,
    share,
    with_error,
)
from raygeo.report.view import View
from raygeo.tables import BASE


def results(view: View) -> Sheet:
    """Everything about every run in one row, the base first."""
    benchmarks = list(view.frame("accuracy").benchmark.unique())
    runs = view.runs.set_index("run")
    accuracy = view.frame("accuracy").set_index(["benchmark", "run"])
    whole = view.frame("deltas", scope="global").set_index("run")
    norms = runs.delta_norm.combine_first(whole["norm"])
    shares = runs.relative_norm.combine_first(whole.relative_norm)
    cosines = against_reference(view, "similarity", scope="global").cosine
    top = view.curvature("eigenvalue")[0].groupby("run").value.max()
    trace = view.curvature("trace")[0].set_index("run")
    barriers = against_reference(view, "barriers", metric="nll", probe=first_probe(view))
    trained = [column for column in ("loss", "lr", "seed") if runs[column].notna().any()]
    columns = ["run", *trained, "status"]
    for benchmark in benchmarks:
        prefix = f"{benchmark} " if len(benchmarks) > 1 else ""
        columns += [f"{prefix}accuracy", "points vs base", "p (Holm) vs base"]
    columns += ["‖Δ‖", "‖Δ‖/‖W‖", "cosine to ref.", "top eigenvalue", "trace", "barrier to ref."]

    rows: list[list[Cell]] = []
    for name in (BASE, *view.names):
        row: list[Cell] = [name, *_run_cells(runs, name, trained)]
        for benchmark in benchmarks:
            row += _accuracy_cells(view, accuracy, benchmark, name)
        itself = name == view.reference_run and name not in view.failed
        row += [
            typeset.significant(norms.get(name)),
            share(shares.get(name)),
            "1" if itself else typeset.fixed(cosines.get(name)),
            typeset.significant(top.get(name)),
            with_error(at(trace, name, "value"), at(trace, name, "error")),
            _barrier(barriers, name, "chord"),
        ]
        rows.append(row)
    shown = rows if len(rows) > 1 or benchmarks else []
    return Sheet(columns, shown, frozenset({"run", "loss", "status"}))


def trials(view: View) -> Sheet:
    """The runs of a sweep, the best configurations first: what was chosen, the objectives, and the rank."""
    frame = view.frame("trials").sort_values("rank", kind="stable", na_position="last")
    measured = [name for name in _OBJECTIVES if frame[name].notna().any()]
    rows = [
        [
            row.run,
            ", ".join(f"{name} {_chosen(value)}" for name, value in json.loads(row.values_).items()),
            *(_OBJECTIVES[name][1](getattr(row, name)) for name in measured),
            typeset.count(row.rank),
            str(row.status or typeset.MISSING),
        ]
        for row in frame.rename(columns={"values": "values_"}).itertuples()
    ]
    columns = ["run", "chosen", *(_OBJECTIVES[name][0] for name in measured), "rank", "status"]
    return Sheet(columns, rows, frozenset({"run", "chosen", "status"}))


_OBJECTIVES = {
    "accuracy": ("accuracy", typeset.percent),
    "heldout_nll": ("held-out NLL", lambda value: typeset.fixed(value, 3)),
    "sharpness": ("sharpness", typeset.significant),
}


def _chosen(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


@section(
    "McNemar tests, {name}",
    """Exact two-sided p, Holm-corrected over all pairs. Below it, how many problems only the row's run solved and how
    many only the column's.""",
)
def mcnemar(view: View) -> dict[str, Sheet]:
    """One matrix a benchmark: Holm-corrected p, below it the problems that only the row's : the column's run solved."""
    sheets = {}
    for benchmark, frame in view.frame("mcnemar").groupby("benchmark", sort=False):
        names = view.order({*frame.run_a, *frame.run_b})
        cells: dict[tuple[str, str], Cell] = {}
        for row in frame.itertuples():
            p = typeset.p_value(row.p_holm)
            cells[row.run_a, row.run_b] = (p, f"{row.only_a} : {row.only_b}")
            cells[row.run_b, row.run_a] = (p, f"{row.only_b} : {row.only_a}")
        rows = [[a, *(cells.get((a, b), "") for b in names)] for a in names]
        sheets[benchmark] = Sheet(["run", *names], rows, frozenset({"run"}))
    return sheets


def _run_cells(runs: pd.DataFrame, name: str, trained: list[str]) -> list[Cell]:
    """What is known of a run's training, and its status."""
    if name not in runs.index:
        return [*[typeset.MISSING] * len(trained), "untrained" if name == BASE else typeset.MISSING]
    run = runs.loc[name]
    known = {"loss": _text(run.loss), "lr": typeset.rate(run.lr), "seed": typeset.count(run.seed)}
    return [*(known[column] for column in trained), _text(run.status)]


def _text(value: str | None) -> str:
    return typeset.MISSING if pd.isna(value) else str(value)


def _accuracy_cells(view: View, accuracy: pd.DataFrame, benchmark: str, name: str) -> list[Cell]:
    if (benchmark, name) not in accuracy.index:
        return [typeset.MISSING] * 3
    row = accuracy.loc[(benchmark, name)]
    shown: list[Cell] = [(typeset.percent(row.accuracy), typeset.interval(row.low, row.high, typeset.percent))]
    if name == BASE or (benchmark, BASE) not in accuracy.index:
        return [*shown, typeset.MISSING, typeset.MISSING]
    tests = view.against(BASE, "mcnemar", benchmark=benchmark).set_index("run")
    difference = row.accuracy - accuracy.loc[(benchmark, BASE)].accuracy
    return [*shown, typeset.points(difference), typeset.p_value(at(tests, name, "p_holm"))]


def _barrier(frame: pd.DataFrame, name: str, kind: str) -> Cell:
    return barrier_cell(frame.loc[name], kind) if name in frame.index else typeset.MISSING
