"""Every run in one row, and tests between runs."""

from collections.abc import Iterable, Sequence

import pandas as pd

from raygeo.report import typeset
from raygeo.report.parts import Column
from raygeo.report.sheets import Cell, Sheet, at, section
from raygeo.report.view import View
from raygeo.tables import BASE


def results(view: View, measured: Sequence[Column]) -> Sheet:
    """Everything about every run in one row, the base first; ``measured`` are the columns that analyses bring, of which
    those that no run has a cell in are left out.
    """
    benchmarks = list(view.frame("accuracy").benchmark.unique())
    runs = view.runs.set_index("run")
    accuracy = view.frame("accuracy").set_index(["benchmark", "run"])
    trained = [column for column in ("loss", "lr", "seed") if runs[column].notna().any()]
    columns = ["run"]
    tests = {name: view.against(BASE, "mcnemar", benchmark=name).set_index("run") for name in benchmarks}
    shifts = view.shifts
    for benchmark in benchmarks:
        shift = shifts.get(benchmark, "none")
        prefix = f"{shifted(benchmark, shift)} " if len(benchmarks) > 1 or shift != "none" else ""
        columns += [f"{prefix}accuracy", "points vs base", "p (Holm) vs base"]
    found = [(column.title, cells) for column in measured if (cells := column.cells(view))]
    rows: list[list[Cell]] = []
    for name in (BASE, *view.names):
        row: list[Cell] = [name]
        for benchmark in benchmarks:
            row += _accuracy_cells(tests[benchmark], accuracy, benchmark, name)
        row += _run_cells(runs, name, trained)
        rows.append(row + [known.get(name, typeset.MISSING) for _, known in found])
    shown = rows if len(rows) > 1 or benchmarks else []
    columns += [*trained, "status"]
    return Sheet([*columns, *(title for title, _ in found)], shown, frozenset({"run", "loss", "status"}))


def configurations(view: View) -> Sheet:
    """Of many runs, every configuration in one row: mean accuracy over its runs, least and greatest.

    The base comes first, if it was asked, then the best.
    """
    accuracy = view.frame("accuracy")
    benchmarks = list(accuracy.benchmark.unique())
    groups = view.groups({*view.names, *accuracy.run}) if view.many else {}
    runs = view.runs.set_index("run")
    found: list[tuple[tuple[bool, float], list[Cell]]] = []
    for first, members in groups.items():
        row: list[Cell] = [first]
        means = []
        for benchmark in benchmarks:
            values = accuracy[(accuracy.benchmark == benchmark) & accuracy.run.isin(members)].accuracy
            means.append(float(values.mean()) if len(values) else -1.0)
            spread = typeset.interval(values.min(), values.max(), typeset.percent) if len(values) > 1 else ""
            text = typeset.percent(values.mean()) if len(values) else typeset.MISSING
            row.append((text, spread) if spread else text)
        counts = (typeset.count(len(of)) for of in (members, set(members) - view.failed))
        row += [*_run_cells(runs, first, ["loss", "lr"])[:-1], *([typeset.MISSING] * 2 if first == BASE else counts)]
        found.append(((first != BASE, -means[0] if means else 0.0), row))
    shown = [row for _, row in sorted(found, key=lambda item: item[0])]
    named = [f"{benchmark} accuracy" if len(benchmarks) > 1 else "accuracy" for benchmark in benchmarks]
    columns = ["configuration", *named, "loss", "lr", "runs", "finished"]
    return Sheet(columns, shown, frozenset({"configuration", "loss"}))


SHIFTS = {"ood": "out of distribution", "retention": "retention"}
"""What a page says of each shift."""


@section(
    "In and out of distribution",
    """Accuracy on problems of the kind of the rollouts, and on those of benchmarks that the study says are out of
    distribution, with 95 % intervals over problems. The drop is the first less the second, in points, with Newcombe's
    interval for two sets of problems; it compares sets that differ in difficulty too, so what a loss does to it is read
    against the base's.""",
)
def drops(view: View) -> Sheet:
    """One row a run, three columns a benchmark of shift ``ood``."""
    frame = view.frame("drops")
    benchmarks = list(frame.benchmark.unique())
    found = {(row.run, row.benchmark): row for row in frame.itertuples()}
    accuracy = view.frame("accuracy").set_index(["benchmark", "run"])
    within = frame.within.iloc[0] if benchmarks else ""
    columns = ["run", f"{within} accuracy"]
    for benchmark in benchmarks:
        columns += [f"{benchmark} accuracy", f"{benchmark} drop"]
    rows: list[list[Cell]] = []
    for name in view.order(set(frame.run)):
        row: list[Cell] = [name, _accuracy_cell(accuracy, within, name)]
        for benchmark in benchmarks:
            drop = found.get((name, benchmark))
            row.append(_accuracy_cell(accuracy, benchmark, name))
            row.append(
                typeset.MISSING
                if drop is None
                else (typeset.points(drop.drop), typeset.interval(drop.low, drop.high, typeset.points))
            )
        rows.append(row)
    return Sheet(columns, rows, frozenset({"run"}))


@section(
    "McNemar tests, {name}",
    """Exact two-sided p, Holm-corrected over all pairs. Below it, how many problems only the row's run solved and how
    many only the column's; with several answers a problem, how many each solved more often.""",
)
def mcnemar(view: View) -> dict[str, Sheet]:
    """One matrix a benchmark: Holm-corrected p, below it the problems that only the row's : the column's run solved."""
    sheets = {}
    for benchmark, frame in view.frame("mcnemar").groupby("benchmark", sort=False):
        names = view.examples({*frame.run_a, *frame.run_b}, most=24)
        cells: dict[tuple[str, str], Cell] = {}
        for row in frame[frame.run_a.isin(names) & frame.run_b.isin(names)].itertuples():
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


def _accuracy_cells(tests: pd.DataFrame, accuracy: pd.DataFrame, benchmark: str, name: str) -> list[Cell]:
    if (benchmark, name) not in accuracy.index:
        return [typeset.MISSING] * 3
    row = accuracy.loc[(benchmark, name)]
    shown = [_accuracy_cell(accuracy, benchmark, name)]
    if name == BASE or (benchmark, BASE) not in accuracy.index:
        return [*shown, typeset.MISSING, typeset.MISSING]
    difference = row.accuracy - accuracy.loc[(benchmark, BASE)].accuracy
    return [*shown, typeset.points(difference), typeset.p_value(at(tests, name, "p_holm"))]


def _accuracy_cell(accuracy: pd.DataFrame, benchmark: str, name: str) -> Cell:
    if (benchmark, name) not in accuracy.index:
        return typeset.MISSING
    row = accuracy.loc[(benchmark, name)]
    return typeset.percent(row.accuracy), typeset.interval(row.low, row.high, typeset.percent)


def shifted(benchmark: str, shift: str) -> str:
    """What a benchmark is called where its shift is said too: ``harder (out of distribution)``."""
    return f"{benchmark} ({SHIFTS[shift]})" if shift in SHIFTS else benchmark


def accuracies(view: View) -> Iterable[tuple[str, str, float | None]]:
    """Accuracy and its interval, by benchmark; without one, that of the chief benchmark, the study's first."""
    chief = next((row["benchmark"] for row in view.rows("benchmarks")), None)
    for row in view.rows("accuracy"):
        if row["benchmark"] == chief:
            yield row["run"], "accuracy", row["accuracy"]
        for name, column in (("accuracy", "accuracy"), ("accuracy_low", "low"), ("accuracy_high", "high")):
            yield row["run"], f"{row['benchmark']}/{name}", row[column]


def drop_metrics(view: View) -> Iterable[tuple[str, str, float | None]]:
    """The drop out of distribution and its interval, by benchmark, ``eval/harder/drop``."""
    for row in view.rows("drops"):
        for name, column in (("drop", "drop"), ("drop_low", "low"), ("drop_high", "high")):
            yield row["run"], f"{row['benchmark']}/{name}", row[column]
