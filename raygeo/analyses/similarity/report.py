"""What is shown of cosines and orthogonal fractions."""

from collections.abc import Iterator, Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import clustered, figure, heatmap, heatmap_figure
from raygeo.report.sheets import Cell, Sheet, against_reference, at, section, unordered
from raygeo.report.view import View
from raygeo.tables import BASE

_DIFFERS = {
    "order": "data order",
    "init": "adapter initialisation",
    "both": "data order and adapter initialisation",
}


def cosine_cells(view: View) -> Mapping[str, Cell]:
    """The cosine of each run to the reference run."""
    cosines = against_reference(view, "similarity", scope="global").cosine
    if cosines.empty:
        return {}
    itself = {} if view.reference_run in view.failed else {view.reference_run: "1"}
    return {name: typeset.fixed(cosine) for name, cosine in cosines.items()} | itself


def seed_pairs(view: View) -> pd.DataFrame:
    """Pairs of runs whose settings differ in nothing but a seed: the study's noise floor.

    Columns: run_a, run_b, differs ("data order", "adapter initialisation" or both), cosine.
    """
    rows = []
    for row in view.frame("similarity", scope="global").dropna(subset="cosine").itertuples():
        a, b = view.conditions.get(row.run_a), view.conditions.get(row.run_b)
        if a is None or b is None or a.configuration != b.configuration or a.seeds(b) == "same":
            continue
        rows.append((row.run_a, row.run_b, _DIFFERS[a.seeds(b)], row.cosine))
    return pd.DataFrame(rows, columns=["run_a", "run_b", "differs", "cosine"])


@figure(
    "cosine",
    "Do the runs move the weights in the same direction?",
    """Cosine of the angle between two runs' weight deltas, all modules flattened into one vector: 1 is the
    same direction, 0 unrelated, negative (blue) opposed. Runs are ordered so that similar ones stand
    together. Judge each cell against the noise floor below: what the same loss gives when only the seed
    differs. The cosine ignores how far a run moved.""",
)
def cosine_heatmap(view: View) -> Figure | None:
    """Draw the matrix of global cosines, clustered when it is complete."""
    frame = view.frame("similarity", scope="global").dropna(subset="cosine")
    names = view.order({*frame.run_a, *frame.run_b} - {BASE})
    if len(names) < 2:
        return None
    values = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(values, 1.0)
    i, j = (pd.Index(names).get_indexer(frame[column]) for column in ("run_a", "run_b"))
    kept = (i >= 0) & (j >= 0) & (i != j)
    values[i[kept], j[kept]] = values[j[kept], i[kept]] = frame.cosine[kept]
    cells = pd.DataFrame(values, index=names, columns=names)
    if len(names) > 2 and cells.notna().to_numpy().all():
        cells = clustered(cells)
    fig, ax = heatmap_figure(cells)
    heatmap(ax, cells, Normalize(-1, 1), matplotlib.colormaps["RdBu_r"], typeset.fixed)
    ax.set_title("cosine of weight deltas, all modules")
    return fig


@section(
    "Noise floor",
    """Runs that differ in nothing but a seed. Two losses can be said to differ in direction only where their cosine is
    clearly below these.""",
    empty="""No cosine of two runs that differ in a seed only is known, so there is no noise floor: how alike two runs
    of one loss would be is unknown here.""",
)
def noise_floor(view: View) -> Sheet:
    """Pairs that differ in a seed only, and how many pairs of different losses are at least as alike."""
    floor = seed_pairs(view)
    between = [
        row.cosine
        for row, a, b in unordered(view, view.frame("similarity", scope="global").dropna(subset="cosine"))
        if view.losses.get(a) != view.losses.get(b)
    ]
    rows = [
        [
            row.run_a,
            row.run_b,
            row.differs,
            typeset.fixed(row.cosine, 3),
            f"{sum(cosine >= row.cosine for cosine in between)} of {len(between)}",
        ]
        for row, *_ in unordered(view, floor)
    ]
    columns = ["a", "b", "differs in", "cosine", "pairs of different losses at least as alike"]
    return Sheet(columns, rows, frozenset({"a", "b", "differs in"}))


@section(
    "Every run against {reference}",
    """“Null s.d.” is the standard deviation the cosine would have between random directions. The orthogonal fraction is
    the share of a run's norm left when the reference's direction is taken out, module by module; it repeats what the
    cosine says.""",
)
def reference_pairs(view: View) -> Sheet:
    """Every run against the reference: cosine and its null, orthogonal fraction."""
    similarity = against_reference(view, "similarity", scope="global")
    rows = [
        [
            name,
            typeset.fixed(at(similarity, name, "cosine"), 3),
            typeset.significant(at(similarity, name, "null_sd"), 2),
            typeset.fixed(at(similarity, name, "orthogonal_fraction"), 3),
        ]
        for name in view.order(set(similarity.index) - {BASE})
    ]
    return Sheet(["run", "cosine", "null s.d.", "orthogonal fraction"], rows, frozenset({"run"}))


@section("Cosine and orthogonal fractions, pair by pair: {rows}", folded=True)
def pairs(view: View) -> Sheet:
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
        for row, a, b in unordered(view, frame.sort_values("cosine", ascending=False, kind="stable"))
    ]
    columns = ["a", "b", "cosine", "null s.d.", "b orthogonal to a", "a orthogonal to b"]
    return Sheet(columns, rows, frozenset({"a", "b"}))


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Cosine to the reference run, and the share of the norm orthogonal to it, as seen from each run."""
    for row in view.rows("similarity", scope="global", run_b=view.reference_run):
        if row["run_a"] != view.reference_run:
            yield row["run_a"], "cosine_to_reference", row["cosine"]
            yield row["run_a"], "orthogonal_to_reference", row["orthogonal_fraction"]
