"""What the models compute: representations, predictions, gradients."""

from collections.abc import Callable

import pandas as pd

from raygeo.report import typeset
from raygeo.report.sections.parts import Cell, Sheet, at, nats, section, unordered
from raygeo.report.view import View
from raygeo.tables import BASE


@section(
    "Representations without what dominates them",
    """CKA with the base at the last layer, below it the least over layers, on the same texts. Few dimensions and
    directions carry most of the variance of a language model's hidden states and with it plain CKA. “RMS-normed”
    divides every token's state by its root mean square; “no outliers” leaves out the dimensions that are massive in
    the base; “no first component” and “no first three” leave out each model's own leading principal components.
    Where a column is much below the plain one, plain CKA saw the dominant part alone.""",
)
def treatments(view: View) -> Sheet:
    """CKA of every run with the base under each treatment: last layer, and the least over layers."""
    frame = view.against(BASE, "cka").dropna(subset="cka").sort_values("layer")
    shown = [name for name in _TREATMENTS if (frame.treatment == name).any()]
    rows: list[list[Cell]] = []
    for run in view.order(frame.run):
        row: list[Cell] = [run]
        for name in shown:
            cka = frame[(frame.run == run) & (frame.treatment == name)].cka
            row.append(
                typeset.MISSING
                if cka.empty
                else (typeset.fixed(cka.iloc[-1], 3), f"least {typeset.fixed(cka.min(), 3)}")
            )
        rows.append(row)
    return Sheet(["run", *(_TREATMENTS[name] for name in shown)], rows, frozenset({"run"}))


_TREATMENTS = {
    "plain": "plain",
    "rms_normed": "RMS-normed",
    "without_outliers": "no outliers",
    "without_1_pc": "no first component",
    "without_3_pcs": "no first three",
}


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


@section(
    "Coherence of gradients",
    """Of each run's own training loss over training prompts, one example each, at the base and at the run's weights.
    m-coherence is m times the squared mean gradient over the mean squared gradient: 1 for orthogonal gradients, m for
    equal ones. “A pair” does not grow with m. The gradient's length is that of the loss as training divides it. 95 %
    jackknife intervals over examples.""",
)
def coherence(view: View) -> Sheet:
    """m-coherence, the same a pair, and the gradient's length, at the base and at each run's weights."""
    frame = view.frame("coherence").dropna(subset="coherence").set_index(["run", "at"])
    rows: list[list[Cell]] = []
    for name in view.order(set(frame.index.get_level_values("run"))):
        here = frame.loc[name]
        row: list[Cell] = [name, typeset.count(here.n.max())]
        for place in ("base", "run"):
            row += [_estimate(here, place, "coherence", 2), _estimate(here, place, "pairwise", 3)]
            row.append(typeset.significant(at(here, place, "gradient_norm")))
        rows.append(row)
    columns = ["run", "m"]
    for place in ("at the base", "at the run"):
        columns += [f"m-coherence {place}", f"a pair {place}", f"gradient {place}"]
    return Sheet(columns, rows, frozenset({"run"}))


def _estimate(frame: pd.DataFrame, name: str, column: str, digits: int) -> Cell:
    if name not in frame.index:
        return typeset.MISSING
    row = frame.loc[name]

    def write(value: float | None) -> str:
        return typeset.fixed(value, digits)

    spread = typeset.interval(row[f"{column}_low"], row[f"{column}_high"], write)
    return (write(row[column]), spread) if spread else write(row[column])


@section(
    "Gradients of the losses at the base, pair by pair: {rows} rows",
    """Cosine of mean gradients over the same prompts, and an estimate of that of the expected gradients from pairs of
    different prompts alone, without the noise of prompts; it is missing where the prompts are too few to tell a
    gradient from noise. 95 % jackknife intervals over prompts.""",
    folded=True,
)
def gradient_cosines(view: View) -> Sheet:
    """Cosine of two losses' mean gradients at the base, the most alike first."""
    frame = view.frame("gradient_cosines").dropna(subset="cosine").sort_values("cosine", ascending=False, kind="stable")
    rows = [
        [
            a,
            b,
            *(_estimate(pd.DataFrame([row._asdict()], ["x"]), "x", c, 3) for c in ("cosine", "expected")),
            str(row.n),
        ]
        for row, a, b in unordered(view, frame)
    ]
    return Sheet(["a", "b", "cosine", "expected", "prompts"], rows, frozenset({"a", "b"}))
