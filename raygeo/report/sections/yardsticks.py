"""What cosines are to be judged by."""

import pandas as pd

from raygeo.report import typeset
from raygeo.report.sections.parts import Cell, Sheet, known, section, unordered
from raygeo.report.view import View

_SEEDS = {"same": "none", "order": "data order", "init": "adapter", "both": "data order and adapter"}


@section(
    "Losses or seeds?",
    """Mean cosine of runs of one loss under other seeds, and of runs of different losses with the same settings under
    other seeds. d′ is their difference in pooled standard deviations of a pair. p is one-sided, from permuting losses
    among runs with the same settings and seeds, which would be one and the same run if the loss did not matter.
    Settings tested one by one are not corrected for their number.""",
)
def separations(view: View) -> Sheet:
    """Within and between losses: cosines, d', and the permutation test, for all settings and for each."""
    rows: list[list[Cell]] = [
        [
            f"those of {row.like}" if row.like else "all",
            typeset.count(row.runs),
            _mean(row.within_mean, row.within_n),
            _mean(row.between_mean, row.between_n),
            typeset.fixed(row.d_prime),
            typeset.p_value(row.p),
            row.reason or _labelings(row),
        ]
        for row in view.frame("separations").itertuples()
    ]
    columns = ["settings", "runs", "within a loss", "between losses", "d′", "p", "test"]
    return Sheet(columns, rows, frozenset({"settings", "test"}))


@section(
    "Cosines beside their yardsticks: {rows} pairs",
    """z is the cosine in standard deviations of that of random directions. The floor is what other seeds of either
    run's own loss and settings give, lowest to highest. Disattenuated: the cosine over the geometric mean of both
    floors, known for runs of other seeds alone; it is an estimate and may exceed 1. Centred: with the mean over losses
    taken out, the deltas as they are and, after the stroke, each at unit length; below, what orthogonal runs would
    give. Where deltas differ much in length, short ones less the mean are all but the mean, turned round: read the
    second. Distances are as they are and, below, at equal norms.""",
    folded=True,
)
def yardsticks(view: View) -> Sheet:
    """Every pair of runs: cosine, z, floors, disattenuated and centred cosines, distances; the most alike first."""
    frame = view.frame("yardsticks").sort_values("cosine", ascending=False, kind="stable")
    seeds = _floors(view)
    rows: list[list[Cell]] = [
        [
            a,
            b,
            _SEEDS.get(row.seeds, typeset.MISSING),
            typeset.fixed(row.cosine, 3),
            typeset.fixed(row.z, 1),
            _floor_cell([seeds[name] for name in (a, b) if name in seeds]),
            typeset.fixed(row.disattenuated, 3),
            (
                f"{typeset.fixed(row.centred_cosine)} / {typeset.fixed(row.matched_centred_cosine)}",
                f"{typeset.fixed(row.centred_null)} / {typeset.fixed(row.matched_centred_null)}",
            ),
            (typeset.significant(row.distance), typeset.significant(row.matched_distance)),
        ]
        for row, a, b in unordered(view, frame)
    ]
    columns = ["a", "b", "seeds that differ", "cosine", "z", "floor", "disattenuated", "centred", "distance"]
    return Sheet(columns, rows, frozenset({"a", "b", "seeds that differ"}))


@section(
    "Cosines by configuration and seeds: {rows} rows",
    """Runs that differ in seeds alone are of one configuration, named by its first run. Rows of a configuration with
    itself are noise floors, with orders of the data and initialisations of the adapter kept apart.""",
    folded=True,
)
def floors(view: View) -> Sheet:
    """Cosines of any two configurations, by the seeds that differ."""
    rows: list[list[Cell]] = [
        [
            row.configuration_a,
            row.configuration_b if row.configuration_b != row.configuration_a else "itself",
            _SEEDS.get(row.seeds, typeset.MISSING),
            typeset.count(row.n),
            (typeset.fixed(row.mean, 3), typeset.interval(row.low, row.high, lambda value: typeset.fixed(value, 3))),
            typeset.fixed(row.disattenuated, 3),
        ]
        for row in view.frame("floors").itertuples()
    ]
    columns = ["a", "b", "seeds that differ", "pairs", "mean cosine, lowest and highest", "disattenuated"]
    return Sheet(columns, rows, frozenset({"a", "b", "seeds that differ"}))


@section(
    "Beyond the seeds of a configuration: {rows} rows",
    """The share of a run's norm outside the span of all (other) runs of a configuration, so that what seeds bring in is
    not called a new direction. Rows of a run of that configuration itself are the floor: what one seed has that the
    others have not. Chance is what a random direction would leave.""",
    folded=True,
)
def spans(view: View) -> Sheet:
    """Orthogonal fractions of every run beside the span of every configuration with several seeds."""
    rows: list[list[Cell]] = [
        [
            row.run,
            row.configuration,
            typeset.count(row.n),
            typeset.fixed(row.orthogonal_fraction, 3),
            typeset.fixed(row.null_fraction, 4),
            "one of them, left out" if row.among else "",
        ]
        for row in view.frame("spans").itertuples()
    ]
    columns = ["run", "span of the runs like", "runs in it", "orthogonal fraction", "chance", "the run is"]
    return Sheet(columns, rows, frozenset({"run", "span of the runs like", "the run is"}))


def _mean(mean: float | None, n: int) -> Cell:
    return (typeset.fixed(mean, 3), _pairs(n)) if known(mean) else typeset.MISSING


def _pairs(n: int) -> str:
    return f"{typeset.count(n)} {'pair' if n == 1 else 'pairs'}"


def _labelings(row: pd.Series) -> str:
    count = f"{typeset.count(row.labelings)} labelings"
    return f"{typeset.count(row.draws)} draws of {count}" if known(row.draws) else f"all {count}"


def _floors(view: View) -> dict[str, pd.DataFrame]:
    """Noise floors by run."""
    frame = view.frame("floors")
    own = frame[frame.configuration_a == frame.configuration_b]
    members = view.frame("spans", among=True)
    return {row.run: own[own.configuration_a == row.configuration] for row in members.itertuples()}


def _floor_cell(found: list[pd.DataFrame]) -> Cell:
    rows = pd.concat(found).drop_duplicates() if found else pd.DataFrame()
    if rows.empty:
        return typeset.MISSING
    kinds = ", ".join(_SEEDS[kind] for kind in rows.seeds.unique())
    return f"{typeset.fixed(rows.low.min())} to {typeset.fixed(rows.high.max())}", f"{_pairs(rows.n.sum())}: {kinds}"
