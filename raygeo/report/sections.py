"""The tables of the page as rows of ready text, one function each; a table without data has no rows."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from raygeo.report import typeset
from raygeo.report.limits import seed_pairs
from raygeo.report.view import View
from raygeo.tables import BASE, SCHEMAS

Cell = str | tuple[str, str]


@dataclass(frozen=True)
class Sheet:
    """A table to be shown; ``prose`` names the columns that are not numbers, and the first column heads its row.

    A cell is text, or text and a smaller detail below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    prose: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fact:
    """One number at the head of the page, and what it counts."""

    value: str
    label: str


def facts(view: View) -> list[Fact]:
    """Prompts, rollouts, how many are correct, mixed, truncated and rejected, and the runs made from them."""
    found = []
    if "rollouts" in view.tables and view.tables["rollouts"].num_rows:
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
    if "rejected" in view.tables:
        found.append(Fact(typeset.count(len(view.frame("rejected"))), "input rows rejected"))
    if len(view.runs):
        finished = len(view.runs) - len(view.failed)
        found.append(Fact(f"{finished} of {len(view.runs)}", "runs finished"))
    return found


def results(view: View) -> Sheet:
    """Everything about every run in one row, the base first."""
    benchmarks = list(view.frame("accuracy").benchmark.unique())
    runs = view.runs.set_index("run")
    accuracy = view.frame("accuracy").set_index(["benchmark", "run"])
    whole = view.frame("deltas", scope="global").set_index("run")
    norms = runs.delta_norm.combine_first(whole["norm"])
    shares = runs.relative_norm.combine_first(whole.relative_norm)
    cosines = _against_reference(view, "similarity", scope="global").cosine
    top = view.curvature("eigenvalue")[0].groupby("run").value.max()
    trace = view.curvature("trace")[0].set_index("run")
    barriers = _against_reference(view, "barriers", metric="nll", probe=_first_probe(view))
    columns = ["run", "loss", "lr", "seed", "status"]
    for benchmark in benchmarks:
        prefix = f"{benchmark} " if len(benchmarks) > 1 else ""
        columns += [f"{prefix}accuracy", "points vs base", "p (Holm) vs base"]
    columns += ["‖Δ‖", "‖Δ‖/‖W‖", "cosine to ref.", "top eigenvalue", "trace", "barrier to ref."]

    rows: list[list[Cell]] = []
    for name in (BASE, *view.names):
        row: list[Cell] = [name, *_run_cells(runs, name)]
        for benchmark in benchmarks:
            row += _accuracy_cells(view, accuracy, benchmark, name)
        itself = name == view.reference_run and name not in view.failed
        row += [
            typeset.significant(norms.get(name)),
            _share(shares.get(name)),
            "1" if itself else typeset.fixed(cosines.get(name)),
            typeset.significant(top.get(name)),
            _with_error(_at(trace, name, "value"), _at(trace, name, "error")),
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


def reference_pairs(view: View) -> Sheet:
    """Every run against the reference: cosine and its null, orthogonal fraction, principal angles, last-layer CKA."""
    similarity = _against_reference(view, "similarity", scope="global")
    angles = _median_angles(view)
    cka = view.against(view.reference_run, "cka").dropna(subset="cka").sort_values("layer").groupby("run").last()
    sides = [f"{side} angles" for side in _SIDES]
    columns = ["run", "cosine", "null s.d.", "orthogonal fraction", *sides, "CKA, last layer"]
    rows = [
        [
            name,
            typeset.fixed(_at(similarity, name, "cosine"), 3),
            typeset.significant(_at(similarity, name, "null_sd"), 2),
            typeset.fixed(_at(similarity, name, "orthogonal_fraction"), 3),
            *(_angle_cell(angles, name, side) for side in _SIDES),
            typeset.fixed(_at(cka, name, "cka"), 3),
        ]
        for name in view.order({*similarity.index, *angles.index.get_level_values("run"), *cka.index} - {BASE})
    ]
    return Sheet(columns, rows, frozenset({"run"}))


_SIDES = ("left", "right")


def similarity(view: View) -> Sheet:
    """Cosine and orthogonal fractions of every pair of runs, the most alike first."""
    frame = view.frame("similarity", scope="global")
    fractions = {(row.run_a, row.run_b): row.orthogonal_fraction for row in frame.itertuples()}
    rows = [
        [
            a,
            b,
            typeset.fixed(row.cosine, 3),
            typeset.significant(row.null_sd, 2),
            typeset.fixed(fractions.get((a, b)), 3),
            typeset.fixed(fractions.get((b, a)), 3),
        ]
        for row, a, b in _unordered(view, frame.sort_values("cosine", ascending=False, kind="stable"))
    ]
    columns = ["a", "b", "cosine", "null s.d.", "b orthogonal to a", "a orthogonal to b"]
    return Sheet(columns, rows, frozenset({"a", "b"}))


def barriers(view: View) -> Sheet:
    """Both barriers of every path that was measured."""
    rows = [
        [
            row.run_a,
            row.run_b,
            row.probe if row.metric == "nll" else f"{row.probe}, error rate",
            _barrier_cell(row, "chord"),
            typeset.fixed(row.chord_alpha),
            _barrier_cell(row, "mean"),
            typeset.count(row.n),
        ]
        for row in view.frame("barriers").itertuples()
    ]
    columns = ["a", "b", "probe", "above the chord", "at α", "above the mean of the ends", "examples"]
    return Sheet(columns, rows, frozenset({"a", "b", "probe"}))


def noise_floor(view: View) -> Sheet:
    """Pairs that differ in a seed only, and how many pairs of different losses are at least as alike."""
    floor = seed_pairs(view)
    losses = dict(zip(view.runs.run, view.runs.loss, strict=True))
    between = [
        row.cosine
        for row, a, b in _unordered(view, view.frame("similarity", scope="global").dropna(subset="cosine"))
        if losses.get(a) != losses.get(b)
    ]
    rows = [
        [
            row.run_a,
            row.run_b,
            row.differs,
            typeset.fixed(row.cosine, 3),
            f"{sum(cosine >= row.cosine for cosine in between)} of {len(between)}",
        ]
        for row, *_ in _unordered(view, floor)
    ]
    columns = ["a", "b", "differs in", "cosine", "pairs of different losses at least as alike"]
    return Sheet(columns, rows, frozenset({"a", "b", "differs in"}))


def curvature(view: View) -> Sheet:
    """Top eigenvalues and trace of every run, for each operator and space that was measured."""
    frame = view.frame("curvature")
    rows: list[list[Cell]] = []
    for (operator, space), part in frame.groupby(["operator", "space"], sort=False):
        values = part[part.quantity == "eigenvalue"]
        lowest, traces = (part[part.quantity == name].set_index("run") for name in ("min_eigenvalue", "trace"))
        for name in view.order({*values.run, *traces.index}):
            top = values[values.run == name].value.sort_values(ascending=False).head(5)
            parameters = part[part.run == name].parameters.max()
            trace = _at(traces, name, "value")
            rows.append(
                [
                    name,
                    f"{operator}, {space}",
                    "  ".join(typeset.significant(value) for value in top) or typeset.MISSING,
                    typeset.significant(_at(lowest, name, "value")),
                    _with_error(trace, _at(traces, name, "error")),
                    typeset.significant(trace / parameters if trace is not None and parameters else None),
                    typeset.count(parameters),
                    typeset.count(part[part.run == name].tokens.max()),
                ]
            )
    columns = ["run", "of", "largest eigenvalues", "smallest", "trace", "trace / parameters", "parameters", "tokens"]
    return Sheet(columns, rows, frozenset({"run", "of"}))


def trajectories(view: View) -> Sheet:
    """How every run's norm grew with the step: both fitted laws, which has the lower AIC, and how straight the way was.

    The last two columns need no law: norm over path length at the end, and the least cosine of two moves in a row.
    """
    frame = view.frame("trajectories").sort_values("step")
    fits = view.frame("trajectory_fits").set_index(["run", "law"])
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        way = frame[frame.run == name]
        log, power = (fits.loc[(name, law)] if (name, law) in fits.index else _NO_FIT for law in ("log", "power"))
        rows.append(
            [
                name,
                typeset.count(len(way)),
                _law(log, "{} + {} log t"),
                _law(power, "{} t^{}"),
                typeset.fixed(log.aic - power.aic, 1),
                typeset.fixed(way.straightness.iloc[-1]),
                typeset.fixed(way.cosine_previous.min()),
            ]
        )
    columns = ["run", "points", "a + b log t", "c t^q", "AIC, log − power", "‖Δ‖ / path", "sharpest turn, cosine"]
    return Sheet(columns, rows, frozenset({"run"}))


_NO_FIT = pd.Series(dict.fromkeys(("a", "b", "rss", "aic"), math.nan))


def _law(fit: pd.Series, text: str) -> Cell:
    if not _known(fit.a):
        return typeset.MISSING
    return text.format(*(typeset.significant(fit[name]) for name in "ab")), f"RSS {typeset.significant(fit.rss, 2)}"


def counts(view: View) -> Sheet:
    """Every count the stages recorded."""
    frame = view.frame("counts")
    rows = [(*what, typeset.count(n)) for *what, n in zip(frame.stage, frame["name"], frame.value, strict=True)]
    return Sheet(["stage", "what", "count"], rows, frozenset({"stage", "what"}))


def rejected(view: View) -> Sheet:
    """Rejected input rows by source and reason."""
    groups = view.frame("rejected").groupby(["reason", "source"], dropna=False).size().sort_values(ascending=False)
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
    """The tables behind the page, with their sizes and columns."""
    rows = [
        (f"tables/{name}.parquet", typeset.count(view.tables[name].num_rows), ", ".join(view.tables[name].column_names))
        for name in SCHEMAS
        if name in view.tables
    ]
    return Sheet(["file in the store", "rows", "columns"], rows, frozenset({"file in the store", "columns"}))


# -- parts ------------------------------------------------------------------------------------------------------------


def _known(value: float | None) -> bool:
    return value is not None and not pd.isna(value)


def _at(frame: pd.DataFrame, name: str, column: str) -> float | None:
    """The number at (``name``, ``column``), None when the row is missing."""
    return frame[column].get(name)


def _share(value: float | None) -> str:
    return typeset.MISSING if not _known(value) else f"{typeset.significant(100 * value, 2)} %"  # type: ignore[operator]


def _with_error(value: float | None, error: float | None) -> Cell:
    text = typeset.significant(value)
    return (text, f"± {typeset.significant(error, 2)}") if _known(value) and _known(error) else text


def _run_cells(runs: pd.DataFrame, name: str) -> list[Cell]:
    if name not in runs.index:
        return [*[typeset.MISSING] * 3, "untrained" if name == BASE else typeset.MISSING]
    run = runs.loc[name]
    return [str(run.loss), typeset.rate(run.lr), typeset.count(run.seed), str(run.status or typeset.MISSING)]


def _accuracy_cells(view: View, accuracy: pd.DataFrame, benchmark: str, name: str) -> list[Cell]:
    if (benchmark, name) not in accuracy.index:
        return [typeset.MISSING] * 3
    row = accuracy.loc[(benchmark, name)]
    shown: list[Cell] = [(typeset.percent(row.accuracy), typeset.interval(row.low, row.high, typeset.percent))]
    if name == BASE or (benchmark, BASE) not in accuracy.index:
        return [*shown, typeset.MISSING, typeset.MISSING]
    tests = view.against(BASE, "mcnemar", benchmark=benchmark).set_index("run")
    difference = row.accuracy - accuracy.loc[(benchmark, BASE)].accuracy
    return [*shown, typeset.points(difference), typeset.p_value(_at(tests, name, "p_holm"))]


def _against_reference(view: View, table: str, **equal: str) -> pd.DataFrame:
    """One row a partner of the reference run, rows with the reference first preferred over turned ones."""
    frame = view.against(view.reference_run, table, **equal)
    return frame.sort_values("flipped", kind="stable").drop_duplicates("run").set_index("run")


def _first_probe(view: View) -> str:
    probes = view.frame("barriers", metric="nll").probe
    return "" if probes.empty else str(probes.iloc[0])


def _barrier(frame: pd.DataFrame, name: str, kind: str) -> Cell:
    return _barrier_cell(frame.loc[name], kind) if name in frame.index else typeset.MISSING


def _barrier_cell(row: pd.Series, kind: str) -> Cell:
    value, low, high = (getattr(row, column) for column in (kind, f"{kind}_low", f"{kind}_high"))
    spread = typeset.interval(low, high, _nats)
    return (_nats(value), spread) if spread else _nats(value)


def _nats(value: float | None) -> str:
    return typeset.fixed(value, 3)


def _unordered(view: View, frame: pd.DataFrame) -> Iterable[tuple]:
    """Rows of a pair table, each pair once, with its runs in the study's order."""
    place = {name: i for i, name in enumerate((BASE, *view.names))}
    seen = set()
    for row in frame.itertuples():
        a, b = sorted((row.run_a, row.run_b), key=lambda name: place.get(name, len(place)))
        if a != b and (a, b) not in seen:
            seen.add((a, b))
            yield row, a, b


def _median_angles(view: View) -> pd.DataFrame:
    """Median over modules of the smallest and largest angle to the reference and of their nulls, by (run, side)."""
    frame = view.against(view.reference_run, "subspaces").dropna(subset="angle_degrees")
    frame = frame[frame.k == frame.groupby(["run", "module", "side"]).k.transform("max")]
    extremes = frame.groupby(["run", "module", "side"])[["angle_degrees", "null_degrees"]].agg(["min", "max"])
    return extremes.groupby(["run", "side"]).median()


def _angle_cell(angles: pd.DataFrame, name: str, side: str) -> Cell:
    if (name, side) not in angles.index:
        return typeset.MISSING
    row = angles.loc[(name, side)]
    angle, null = (
        " to ".join(f"{typeset.fixed(row[(column, end)], 0)}°" for end in ("min", "max"))
        for column in ("angle_degrees", "null_degrees")
    )
    return angle, f"chance {null}"
