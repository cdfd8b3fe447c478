"""What is shown of the pre-screen."""

import math
from collections.abc import Iterable, Iterator

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from raygeo.analyses.prescreen.workload import SOUGHT
from raygeo.evaluation.rank_correlation import FEWEST
from raygeo.report import plots, typeset
from raygeo.report.plots import figure, heatmap_figure
from raygeo.report.sheets import Cell, Sheet, known, section
from raygeo.report.verdict import ALPHA, Finding
from raygeo.report.view import View

_MOST = 40


@figure(
    "prescreen",
    "Which metric tells of an outcome beforehand?",
    f"""Spearman's correlation over runs of each metric (rows, the strongest first, at most {_MOST}) with each outcome
    (columns); a star marks those that remain at 5 % after Holm's correction over all metrics of the outcome. Only
    outcomes known of at least {FEWEST} configurations are drawn.""",
)
def heatmap(view: View) -> Figure | None:
    """Draw the correlations as a heatmap, metrics by outcomes."""
    frame = view.frame("prescreen").dropna(subset=["rho", "p_holm"])
    if frame.empty:
        return None
    cells = frame.pivot(index="metric", columns="outcome", values="rho")[list(frame.outcome.unique())]
    strongest = cells.abs().max(axis=1).sort_values(ascending=False, kind="stable").index[:_MOST]
    cells, held = cells.loc[strongest], frame[frame.p_holm <= ALPHA]
    fig, ax = heatmap_figure(cells, column=1.3, row=0.3, left=3.2)
    plots.heatmap(ax, cells, Normalize(-1, 1), matplotlib.colormaps["RdBu"], typeset.fixed)
    for row in held[held.metric.isin(cells.index)].itertuples():
        place = cells.columns.get_loc(row.outcome) + 0.86, cells.index.get_loc(row.metric) + 0.5
        ax.text(*place, "★", ha="center", va="center", size=11, color="#fdfdfd" if abs(row.rho) > 0.55 else "#0a0a0a")
    return fig


@section(
    "What tells of an outcome beforehand",
    """One sentence an outcome. A metric pre-screens it if their rank correlation over runs remains at 5 % after Holm's
    correction over all metrics; runs that differ in seeds alone are one configuration.""",
)
def verdicts(view: View) -> Sheet:
    """One row an outcome."""
    groups = view.frame("prescreen").groupby("outcome", sort=False)
    rows = [(str(outcome), verdict(str(outcome), frame)) for outcome, frame in groups]
    return Sheet(["outcome", "what pre-screens it"], rows, frozenset({"outcome", "what pre-screens it"}))


def prescreened(view: View) -> Iterator[Finding]:
    """What geometry says of outcomes beforehand, an outcome a sentence."""
    for outcome, frame in view.frame("prescreen").groupby("outcome", sort=False):
        yield Finding(f"What tells of {outcome} beforehand? {verdict(str(outcome), frame)}", "table-prescreen-verdicts")


def verdict(outcome: str, frame: pd.DataFrame) -> str:
    """A sentence on what the rows of one outcome show, or on why they show nothing."""
    tested = frame.dropna(subset="p_holm")
    if tested.empty:
        return _nothing(frame)
    held = tested[tested.p_holm <= ALPHA].sort_values("p_holm", kind="stable")
    configurations = int(tested.configurations.min())
    size = (
        f"{typeset.counted(len(tested), 'metric')} {'was' if len(tested) == 1 else 'were'} tested over "
        f"{typeset.count(configurations)} configurations, which "
        f"show a correlation of {typeset.fixed(tested.detectable.max())} with 80 % power; one of {SOUGHT:g} takes "
        f"{typeset.count(tested.needed.max())}."
    )
    if held.empty:
        why = _too_few(len(tested), int(tested.permutations.min()))
        return f"{why or 'None is shown to, at this number of runs.'} {size}"
    return f"{_listed(held)} {_partial(held)} {size}"


def _nothing(frame: pd.DataFrame) -> str:
    configurations = int(frame.configurations.max())
    if configurations >= FEWEST:
        return "Nothing can be told: it, or every metric, is the same for all runs."
    return (
        f"Nothing can be told: it is known of {typeset.counted(configurations, 'configuration')}, and at "
        f"least {FEWEST} are needed; to see a correlation of {SOUGHT:g} with 80 % power, "
        f"{typeset.count(frame.needed.max())}."
    )


def _too_few(metrics: int, permutations: int) -> str:
    """Why no metric can hold whatever the runs are like, or nothing if one can."""
    least = metrics / (1 + permutations)
    if least <= ALPHA:
        return ""
    enough = math.ceil(metrics / ALPHA - 1e-9) - 1
    return (
        f"None can: of {typeset.count(permutations)} permutations the least p is {typeset.p_value(least)} once it is "
        f"corrected over {typeset.counted(metrics, 'metric')}; set geometry.prescreen.permutations to {enough} or "
        "more, or name fewer predictors."
    )


def _listed(held: pd.DataFrame) -> str:
    shown = _first(f"{row.metric} (ρ {typeset.fixed(row.rho)})" for row in held.itertuples())
    return f"{shown} {'does' if len(held) == 1 else 'do'}."


def _first(names: Iterable[str]) -> str:
    """The first five, and how many more there are."""
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {typeset.count(len(shown) - 5)} more" if len(shown) > 5 else "")


def _partial(held: pd.DataFrame) -> str:
    """What is left of them once the controls are partialled out."""
    controls = next((text for text in held.controls if isinstance(text, str)), None)
    if controls is None:
        return "Nothing was partialled out: neither the norm nor the learning rate varies, or they are not known."
    tested, left = held.dropna(subset="partial_p_holm"), held[held.partial_p_holm <= ALPHA]
    own = [metric for metric in held.metric if metric in controls.split(", ")]
    others = len(held) - len(tested) - len(own)
    said = []
    if not left.empty:
        said.append(f"{_first(left.metric)} {'is' if len(left) == 1 else 'are'} left")
    elif not tested.empty:
        said.append("none is shown to be left")
    if own:
        said.append(f"{', '.join(own)} {'is itself one of these' if len(own) == 1 else 'are themselves among these'}")
    if others:
        what = "1 metric varies" if others == 1 else f"{typeset.count(others)} metrics vary"
        said.append(f"{what} with these alone and cannot be tested")
    return f"With {controls} partialled out, {'; '.join(said)}."


@section(
    "Metrics against outcomes, {name}",
    """Spearman's ρ over runs with a 95 % interval (bootstrap of configurations), p of permutations of configurations,
    and the same with the norm of the delta and the learning rate partialled out. The smallest p first.""",
    folded=True,
)
def correlations(view: View) -> dict[str, Sheet]:
    """One table an outcome that was tested: a row a metric."""
    columns = ["metric", "runs", "configurations", "ρ", "p", "p (Holm)", "partial ρ", "partial p", "partial p (Holm)"]
    sheets = {}
    for outcome, frame in view.frame("prescreen").dropna(subset="p").groupby("outcome", sort=False):
        rows = [_row(row) for row in frame.sort_values("p", kind="stable").to_dict("records")]
        sheets[str(outcome)] = Sheet(columns, rows, frozenset({"metric"}))
    return sheets


def _row(row: dict) -> list[Cell]:
    cells: list[Cell] = [row["metric"], typeset.count(row["runs"]), typeset.count(row["configurations"])]
    for before in ("", "partial_"):
        low, high = row["partial_low" if before else "low"], row["partial_high" if before else "high"]
        value, spread = typeset.fixed(row[f"{before}rho"]), typeset.interval(low, high)
        cells.append((value, spread) if known(row[f"{before}rho"]) and spread else value)
        cells += [typeset.p_value(row[f"{before}p"]), typeset.p_value(row[f"{before}p_holm"])]
    return cells


def limits(view: View) -> Iterator[str]:
    """What a correlation over the runs of one study shows, and what it does not."""
    frame = view.frame("prescreen")
    if np.isfinite(frame.p.astype(float)).any():
        yield (
            "A metric that pre-screens an outcome here did so over these losses, rates and seeds of one student: the "
            "runs were chosen, not drawn, so another choice may give another correlation, and none of it is a cause."
        )
