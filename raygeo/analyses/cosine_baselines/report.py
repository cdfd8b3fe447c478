"""What is shown of what cosines are to be judged by."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import figure, legend, make_panels
from raygeo.report.sheets import Cell, Sheet, known, section, unordered
from raygeo.report.style import MUTED
from raygeo.report.verdict import ALPHA, Finding
from raygeo.report.view import View
from raygeo.tables import BASE

_WHOLE_PLANE = 0.95
_SCALINGS = {"raw": "deltas as they are", "matched": "at unit length"}
_SEEDS = {"same": "none", "order": "data order", "init": "adapter", "both": "data order and adapter"}


@figure(
    "map",
    "A map of the runs",
    """The base and every run in the plane in which their distances are kept best (classical multidimensional
    scaling), turned so that the base is at the crossing of the axes and the reference run on the right. Left: the
    deltas as they are, in units of their norm. Right: each scaled to unit length, so that direction alone counts;
    a run on the dotted circle lies wholly in this plane, one inside it points out of it by as much. The titles say
    what share of all variance the plane holds and how far off its distances are (stress; 0 is exact). Distances
    between runs of the plane are lower bounds, and many runs of one kind pull the plane towards themselves.""",
)
def run_map(view: View) -> Figure | None:
    """Draw the map of the deltas as they are and, if there is one, of those at unit length."""
    frame, axes_frame = view.frame("mds"), view.frame("mds_axes")
    kinds = [kind for kind in _SCALINGS if len(frame[frame.scaling == kind]) > 1]
    if not kinds:
        return None
    fig, axes = make_panels(len(kinds), 2, 4.9)
    for ax, kind in zip(axes, kinds, strict=True):
        rows = frame[frame.scaling == kind].set_index("run")
        for name in view.order(set(rows.index)):
            x, y = rows.x[name], rows.y[name]
            ax.plot([0, x], [0, y], color=view.styles[name].colour, linewidth=0.8, alpha=0.6)
            ax.plot([x], [y], **view.styles[name].line(linestyle="none"))
        if kind == "matched":
            turn = np.linspace(0, 2 * np.pi, 181)
            ax.plot(np.cos(turn), np.sin(turn), color=MUTED, linewidth=0.8, linestyle=":")
        plane = axes_frame[(axes_frame.scaling == kind) & (axes_frame.axis <= 2)].sort_values("axis")
        held = f"{typeset.percent(plane.share.sum())} of the variance" if len(plane) else "share not known"
        off = f", stress {typeset.fixed(plane.stress.iloc[-1])}" if len(plane) else ""
        ax.set_title(f"{_SCALINGS[kind]}: {held}{off}")
        ax.set_aspect("equal", adjustable="datalim")
    legend(fig, view, {*frame.run, BASE})
    return fig


@section(
    "Losses or seeds?",
    """Mean cosine of runs of one loss under other seeds, and of runs of different losses with the same settings under
    other seeds. d′ is their difference in pooled standard deviations of a pair, given where there are two pairs of
    either kind. p is one-sided, from permuting losses among runs with the same settings and seeds, which would be one
    and the same run if the loss did not matter. Settings tested one by one are not corrected for their number.""",
    leading=True,
)
def permutation_tests(view: View) -> Sheet:
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
        for row in view.frame("permutation_tests").itertuples()
    ]
    columns = ["settings", "runs", "within a loss", "between losses", "d′", "p", "test"]
    return Sheet(columns, rows, frozenset({"settings", "test"}))


@section(
    "Cosines beside their baselines: {rows}",
    """z is the cosine in standard deviations of that of random directions. The noise floor is what other seeds of
    either run's own loss and settings give, lowest to highest. Disattenuated: the cosine over the geometric mean of
    both noise floors, known for runs of other seeds alone; it is an estimate and may exceed 1. Centred: with the mean
    over losses taken out, the deltas as they are and, after the stroke, each at unit length; below, what orthogonal
    runs would give. Where deltas differ much in length, short ones less the mean are all but the mean, turned round:
    read the second. Distances are as they are and, below, at equal norms.""",
    folded=True,
)
def baselines(view: View) -> Sheet:
    """Pairs of runs: cosine, z, noise floors, disattenuated and centred cosines, distances; the most alike first."""
    frame = view.frame("cosine_baselines").sort_values("cosine", ascending=False, kind="stable")
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
    columns = ["a", "b", "seeds that differ", "cosine", "z", "noise floor", "disattenuated", "centred", "distance"]
    return Sheet(columns, rows, frozenset({"a", "b", "seeds that differ"}))


@section(
    "Cosines by configuration and seeds: {rows}",
    """Runs that differ in seeds alone are of one configuration, named by its first run. Rows of a configuration with
    itself are noise floors, with orders of the data and initialisations of the adapter kept apart.""",
    folded=True,
)
def noise_floors(view: View) -> Sheet:
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
        for row in view.frame("noise_floors").itertuples()
    ]
    columns = ["a", "b", "seeds that differ", "pairs", "mean cosine, lowest and highest", "disattenuated"]
    return Sheet(columns, rows, frozenset({"a", "b", "seeds that differ"}))


@section(
    "Beyond the seeds of a configuration: {rows}",
    """The share of a run's norm outside the span of all (other) runs of a configuration, so that what seeds bring in is
    not called a new direction. Rows of a run of that configuration itself are its noise floor: what one seed has that
    the others have not. Chance is what a random direction would leave.""",
    folded=True,
)
def span_residuals(view: View) -> Sheet:
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
        for row in view.frame("span_residuals").itertuples()
    ]
    columns = ["run", "span of the runs like", "runs in it", "orthogonal fraction", "chance", "the run is"]
    return Sheet(columns, rows, frozenset({"run", "span of the runs like", "the run is"}))


def _mean(mean: float | None, n: int) -> Cell:
    return (typeset.fixed(mean, 3), _pairs(n)) if known(mean) else typeset.MISSING


def _pairs(n: int) -> str:
    return f"{typeset.count(n)} {'pair' if n == 1 else 'pairs'}"


def _labelings(row: pd.Series) -> str:
    many = f"{typeset.count(row.labelings)}" if known(row.labelings) else "more than 10¹⁸"
    count = f"{many} labelings"
    return f"{typeset.count(row.draws)} draws of {count}" if known(row.draws) else f"all {count}"


def _floors(view: View) -> dict[str, list[Any]]:
    """Rows of ``noise_floors`` by run: those of its own configuration."""
    frame = view.frame("noise_floors")
    own = frame[frame.configuration_a == frame.configuration_b]
    floors = {name: list(rows.itertuples()) for name, rows in own.groupby("configuration_a", sort=False)}
    members = view.frame("span_residuals", among=True)
    return {row.run: floors.get(row.configuration, []) for row in members.itertuples()}


def _floor_cell(found: list[list[Any]]) -> Cell:
    rows = {row.Index: row for floor in found for row in floor}.values()
    if not rows:
        return typeset.MISSING
    kinds = ", ".join(dict.fromkeys(_SEEDS[row.seeds] for row in rows))
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    return f"{typeset.fixed(low)} to {typeset.fixed(high)}", f"{_pairs(sum(row.n for row in rows))}: {kinds}"


def judged_by(view: View) -> list[str]:
    """What z, the permutation test and disattenuated cosines do not say."""
    pairs, floors = view.frame("cosine_baselines"), view.frame("noise_floors")
    sentences = []
    if pairs.z.notna().any():
        sentences.append(
            "z compares a cosine with that of random directions. Trained deltas share a base, a task and rollouts, so "
            "a large z says no more than that: the noise floor of other seeds is the measure for losses."
        )
    for test in view.frame("permutation_tests", like="").itertuples():
        if test.reason:
            sentences.append(f"Whether losses differ by more than seeds do is not tested here: {test.reason}.")
        else:
            sentences.append(
                f"The permutation test asks whether the loss matters at all ({test.losses} losses, {test.runs} runs), "
                "not which losses differ, and pairs that share a run are not independent, so d′ is a description."
            )
    corrected = floors.dropna(subset="disattenuated")
    if len(corrected):
        fewest = floors[floors.configuration_a == floors.configuration_b].n.min()
        beyond = int((corrected.disattenuated > 1).sum())
        exceed = "exceeds" if beyond == 1 else "exceed"
        excess = f" {beyond} of {len(corrected)} {exceed} 1, which no cosine can." if beyond else ""
        sentences.append(
            "Disattenuated cosines divide by noise floors that rest on as few as "
            f"{fewest} {'pair' if fewest == 1 else 'pairs'} of runs, and have no interval.{excess}"
        )
    return sentences


def losses_or_seeds(view: View) -> Iterator[Finding]:
    """Whether losses move weights apart by more than seeds do, and which are as alike as seeds of one of them."""
    for test in view.rows("permutation_tests", like=""):
        if test["reason"]:
            said = f"Whether losses move the weights apart by more than seeds do is not tested: {test['reason']}."
        else:
            moved = "Losses move" if test["p"] < ALPHA else "Losses are not shown to move"
            said = (
                f"{moved} the weights apart by more than seeds do: the mean cosine is "
                f"{typeset.fixed(test['within_mean'])} within a loss and {typeset.fixed(test['between_mean'])} between "
                f"losses (permutation test over {test['runs']} runs, p {_equals(test['p'])})."
            )
        yield Finding(said, "table-cosine_baselines-permutation_tests")
    frame = view.frame("noise_floors")
    own = frame[frame.configuration_a == frame.configuration_b]
    floors = {(row.configuration_a, row.seeds): row.mean for row in own.itertuples()}
    judged: dict[tuple[str, str], tuple[float, bool, str]] = {}
    others = frame[frame.configuration_a != frame.configuration_b].sort_values("seeds", kind="stable")
    for row in others.itertuples():
        a, b = row.configuration_a, row.configuration_b
        seeds = [floors[name, row.seeds] for name in (a, b) if (name, row.seeds) in floors]
        if seeds and (a, b) not in judged:
            judged[a, b] = (row.mean, row.mean >= min(seeds), f"{a} and {b} ({typeset.fixed(row.mean)})")
    pairs = list(judged.values())
    if not pairs:
        return
    pairs.sort(reverse=True)
    alike, rest = ([names for _, is_alike, names in pairs if is_alike is wanted] for wanted in (True, False))
    are = "is" if 1 in (len(alike), len(pairs)) else "are"
    every = len(others.drop_duplicates(["configuration_a", "configuration_b"]))
    beside = "" if every == len(pairs) else f" that have several seeds of one (of {typeset.count(every)} in all)"
    said = f"{typeset.count(len(alike))} of {typeset.counted(len(pairs), 'pair')} of configurations{beside} {are} as "
    said += "alike as seeds of one of them are on average"
    said += f": {', '.join(alike[:3])}{' and others' if len(alike) > 3 else ''}" if alike else ""
    said += f"; the least alike {'of the others ' if alike else ''}are {rest[-1]}" if rest else ""
    yield Finding(
        f"{said}. Cosines are means over runs of other seeds; counted, not tested.",
        "table-cosine_baselines-noise_floors",
    )


def _equals(p: float) -> str:
    text = typeset.p_value(p)
    return text if text.startswith("<") else f"= {text}"


def flat_map(view: View) -> list[str]:
    """How much of the variance the map leaves out."""
    axes = view.frame("mds_axes")
    plane = axes[axes.axis <= 2].groupby("scaling").share.sum()
    if plane.empty or plane.min() > _WHOLE_PLANE:
        return []
    return [
        f"The map is flat and holds {typeset.percent(plane.min())} of the variance in one of its panels: runs that lie "
        "close on it may be far apart."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Beside the reference run: z, the cosine of centred unit deltas, and the distance at equal norms."""
    for row in view.rows("cosine_baselines"):
        pair = {row["run_a"], row["run_b"]}
        if view.reference_run in pair:
            [other] = pair - {view.reference_run}
            yield other, "cosine_z_to_reference", row["z"]
            yield other, "centred_cosine_to_reference", row["matched_centred_cosine"]
            yield other, "matched_distance_to_reference", row["matched_distance"]
