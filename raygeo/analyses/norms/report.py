"""What is shown of the deltas' norms."""

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import WIDE, by_layer, figure, legend, log, make_panels
from raygeo.report.rates import by_rate, draw_rates, name_losses
from raygeo.report.sheets import Cell, share
from raygeo.report.view import View

_MATCHED = 1.25
_UNRELATED = 0.5
_DIGITS = {"BF16": 8, "F16": 11}
"""Binary digits of a significand, the leading one included."""


def moved(view: View) -> pd.DataFrame:
    """The rows of whole deltas, by run, in the study's order."""
    whole = view.frame("deltas", scope="global").set_index("run")
    return whole.loc[view.order(set(whole.index))]


def norm_cells(view: View) -> Mapping[str, Cell]:
    """The norm of each run's delta."""
    return {row.Index: typeset.significant(row.norm) for row in moved(view).itertuples()}


def share_cells(view: View) -> Mapping[str, Cell]:
    """That norm as a share of the norm of the same base weights."""
    return {row.Index: share(row.relative_norm) for row in moved(view).itertuples()}


@figure(
    "norms",
    "How far did each layer move?",
    """Frobenius norm of the delta per layer, absolute and as a share of the same base weights. Runs with very
    different norms are not matched comparisons: a longer step along one direction changes accuracy, curvature
    and paths too.""",
)
def norms(view: View) -> Figure | None:
    """Draw absolute and relative delta norms by layer."""
    frame = view.frame("deltas", scope="module").dropna(subset=["layer", "norm"])
    if frame.empty:
        return None
    squares = frame.assign(norm=frame.norm**2, base_norm=frame.base_norm**2)
    layers = squares.groupby(["run", "layer"])[["norm", "base_norm"]].sum().pow(0.5).reset_index()
    layers["relative"] = 100 * layers.norm / layers.base_norm
    fig, axes = make_panels(2, 2, 3.7)
    by_layer(axes[0], view, layers, "norm")
    by_layer(axes[1], view, layers, "relative")
    axes[0].set_title("norm of the delta")
    axes[1].set_title("norm of the delta, % of the base weights")
    moved = layers.norm[layers.norm > 0]
    for ax in axes:
        if moved.max() > 2 * WIDE * moved.min():
            log(ax, "y")
    legend(fig, view, layers.run)
    return fig


@figure(
    "norm-rates",
    "How far runs move, against the learning rate",
    """The norm of whole deltas, one line a loss: the mean over its runs at each learning rate, the band from the
    shortest to the longest.""",
)
def norm_rates(view: View) -> Figure | None:
    """Draw the norm of the delta against the learning rate, of losses that were given several."""
    frame = by_rate(view, moved(view).norm.to_dict())
    if frame.empty:
        return None
    fig, axes = make_panels(1, 3, 3.1)
    draw_rates(axes[0], view, frame)
    axes[0].set_title("norm of the delta")
    name_losses(fig, axes)
    return fig


def unrelated(view: View) -> list[str]:
    """Deltas that are too long for fine-tuning of this base."""
    return [
        f"The delta of {row.Index} is {typeset.percent(row.relative_norm)} as long as the base weights: so far does no "
        "fine-tuning go. Either it was trained from another base, and its numbers mean nothing, or almost from scratch."
        for row in moved(view).itertuples()
        if row.relative_norm > _UNRELATED
    ]


def rounded(view: View) -> list[str]:
    """What the rounding of stored weights adds to a delta."""
    sentences = []
    for row in moved(view).itertuples():
        stored = view.records[row.Index].stored if row.Index in view.records else None
        if stored not in _DIGITS or not row.relative_norm > 0:
            continue
        low, high = (2.0**-digits / 12**0.5 for digits in (_DIGITS[stored], _DIGITS[stored] - 1))
        sentences.append(
            f"{row.Index} is stored as {stored}, which rounds every weight. Where weights moved by more than the "
            f"spacing of such numbers, rounding alone is {typeset.significant(100 * low, 2)} to "
            f"{typeset.significant(100 * high, 2)} % of the base norm; where they moved by less than half of it, the "
            f"move is lost. The delta is {typeset.significant(100 * row.relative_norm, 2)} % of the base norm"
            + (", so most of it may be rounding." if row.relative_norm < 2**0.5 * high else ".")
        )
    return sentences


def unmatched(view: View) -> list[str]:
    """That runs moved differently far."""
    norms = moved(view).norm
    norms = norms[norms > 0]
    if len(norms) < 2 or norms.max() <= _MATCHED * norms.min():
        return []
    return [
        f"The runs are not matched in how far they moved: the delta of {norms.idxmax()} is "
        f"{typeset.significant(norms.max() / norms.min(), 2)} times as long as that of {norms.idxmin()}. Differences "
        "in accuracy, paths, CKA and curvature mix a delta's direction with its length; cosines and angles do not."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Norms and ranks of whole deltas."""
    for row in view.rows("deltas", scope="global"):
        for name in ("norm", "relative_norm", "effective_rank", "stable_rank"):
            yield row["run"], f"delta_{name}", row[name]
