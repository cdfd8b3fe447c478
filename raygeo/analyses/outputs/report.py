"""What is shown of predictions."""

from collections.abc import Callable, Iterator

import pandas as pd
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import WIDE, figure, interval, log, make_panels, name_rows, rows_height, run_rows
from raygeo.report.sheets import Cell, Sheet, nats, section
from raygeo.report.view import View
from raygeo.tables import BASE

_MATCHED = 1.5


@figure(
    "divergence",
    "How far did predictions move?",
    """Kullback-Leibler divergence of next-token predictions over the whole vocabulary, in nats a token, on the same
    held-out solutions: run ‖ base weighs tokens as the run predicts them, base ‖ run as the base did. Bars are 95 %
    intervals over texts. Two runs of equal divergence have moved equally far as functions, which equal norms do not
    promise: compare what else differs between such runs first. The texts are correct solutions of held-out problems,
    not what the runs would write.""",
)
def divergence(view: View) -> Figure | None:
    """Draw the divergence from the base, both ways, one row a run."""
    frame = view.frame("divergences", run_a=BASE).dropna(subset="value")
    frame = frame[frame.quantity.isin(_DIVERGENCES)]
    if frame.empty:
        return None
    labels, place = run_rows(view, frame.run_b)
    fig, axes = make_panels(2, 2, rows_height(len(labels)), sharey=True)
    for ax, (quantity, title) in zip(axes, _DIVERGENCES.items(), strict=True):
        rows = frame[frame.quantity == quantity].set_index("run_b")
        for name, y in place.items():
            if name in rows.index:
                interval(ax, view, name, y, *rows.loc[name, ["value", "low", "high"]])
        name_rows(ax, labels)
        positive = rows.value[rows.value > 0]
        if len(positive) and positive.max() > WIDE * positive.min():
            log(ax, "x")
        else:
            ax.set_xlim(left=0)
        ax.set_title(title)
    return fig


_DIVERGENCES = {"kl_ba": "KL(run ‖ base), nats a token", "kl_ab": "KL(base ‖ run), nats a token"}


@section(
    "Predictions",
    """Of the next token of held-out solutions, teacher-forced, over the whole vocabulary; 95 % intervals over texts.
    Divergences in nats a token; agreement is the share of tokens with the same top guess. The calibration error is
    that of the top guess (15 bins unless set otherwise); being a sum of absolute values it is biased upwards, and so is
    its interval. A largest probability above the accuracy is over-confidence.""",
)
def predictions(view: View) -> Sheet:
    """Divergence from and agreement with the base and the reference run, entropy, confidence and calibration."""
    own = view.frame("outputs").set_index(["run", "quantity"])
    pairs = view.frame("divergences")
    names = view.order({*own.index.get_level_values("run"), *pairs.run_b})
    rows: list[list[Cell]] = []
    for name in names:
        row: list[Cell] = [name]
        for other in (BASE, view.reference_run):
            compared = pairs[(pairs.run_a == other) & (pairs.run_b == name)].set_index("quantity")
            row += [
                _with_interval(compared, "kl_ba", typeset.significant),
                _with_interval(compared, "kl_ab", typeset.significant),
                _with_interval(compared, "agreement", typeset.percent),
            ]
        mine = own.loc[name] if name in own.index.get_level_values("run") else own.iloc[:0].droplevel("run")
        row += [
            _with_interval(mine, "entropy", nats),
            _with_interval(mine, "max_probability", typeset.percent),
            _with_interval(mine, "top1_accuracy", typeset.percent),
            _with_interval(mine, "ece", typeset.percent),
        ]
        rows.append(row)
    columns = ["run"]
    for other in ("base", "ref."):
        columns += [f"KL(run ‖ {other})", f"KL({other} ‖ run)", f"agrees with {other}"]
    columns += ["entropy", "largest probability", "top-1 accuracy", "calibration error"]
    return Sheet(columns, rows, frozenset({"run"}))


def _with_interval(frame: pd.DataFrame, name: str, write: Callable[[float | None], str]) -> Cell:
    if name not in frame.index:
        return typeset.MISSING
    row = frame.loc[name]
    spread = typeset.interval(row.low, row.high, write)
    return (write(row.value), spread) if spread else write(row.value)


def teacher_forced(view: View) -> list[str]:
    """On which texts predictions were compared."""
    frame = view.frame("divergences", run_a=BASE)
    if frame.empty:
        return []
    tokens, texts = (typeset.count(frame[column].max()) for column in ("tokens", "n"))
    return [
        f"Divergences and calibration are over {tokens} tokens of {texts} "
        "correct held-out solutions, teacher-forced: on what a run would write itself they may differ, and its long "
        "wrong answers are not seen. Intervals are over texts, not over training runs."
    ]


def unmatched(view: View) -> list[str]:
    """That predictions moved differently far."""
    frame = view.frame("divergences", run_a=BASE, quantity="kl_ba")
    kl = frame[frame.value > 0].set_index("run_b").value
    if len(kl) < 2 or kl.max() <= _MATCHED * kl.min():
        return []
    return [
        f"The runs are not matched in how far their predictions moved: KL(run ‖ base) of {kl.idxmax()} is "
        f"{typeset.significant(kl.max() / kl.min(), 2)} times that of {kl.idxmin()}."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Divergence from and agreement with the base, agreement with the reference run, confidence and calibration.

    ``geometry/kl_to_base`` is KL(run || base) in nats a token, ``geometry/kl_from_base`` KL(base || run).
    """
    for row in view.rows("divergences"):
        pair = {row["run_a"], row["run_b"]}
        if row["run_a"] == BASE:
            yield row["run_b"], _FROM_BASE[row["quantity"]], row["value"]
        elif view.reference_run in pair and row["quantity"] == "agreement":
            [other] = pair - {view.reference_run}
            yield other, "agreement_with_reference", row["value"]
    for row in view.rows("outputs"):
        yield row["run"], f"predictions/{row['quantity']}", row["value"]


_FROM_BASE = {"kl_ba": "kl_to_base", "kl_ab": "kl_from_base", "agreement": "agreement_with_base"}
