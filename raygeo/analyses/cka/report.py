"""What is shown of CKA, layer by layer."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from raygeo.geometry.representation.features import PLAIN, Treatment
from raygeo.report import typeset
from raygeo.report.plots import band, by_layer, figure, legend, make_panels
from raygeo.report.sheets import Cell, Sheet, section
from raygeo.report.view import View
from raygeo.tables import BASE


@figure(
    "cka",
    "Representations, layer by layer",
    """Unbiased linear CKA of hidden states on the same texts: 1 is the same representation up to rotation and
    scale. Bands are 95 % intervals over minibatches, where known; the unbiased estimate may pass 1 by chance.
    Values near 1 everywhere are normal for one student fine-tuned briefly, so read differences between runs
    rather than levels.""",
)
def cka(view: View) -> Figure | None:
    """Draw CKA by layer against the base and against the reference run."""
    panels = [
        (other, view.against(other, "cka", treatment=PLAIN).dropna(subset="cka"))
        for other in (BASE, view.reference_run)
    ]
    panels = [(other, frame) for other, frame in panels if not frame.empty]
    if not panels:
        return None
    fig, axes = make_panels(len(panels), 2, 3.7, sharey=True)
    for ax, (other, frame) in zip(axes, panels, strict=True):
        by_layer(ax, view, frame, "cka")
        band(ax, view, frame, "low", "high")
        ax.set_title(f"CKA with {other}")
    legend(fig, view, [name for _, frame in panels for name in frame.run])
    return fig


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
    if not _treated(view):
        return Sheet([], [])
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


@section(
    "Representations beside {reference}", "CKA at the last layer, plain, and the least over layers, on the same texts."
)
def with_reference(view: View) -> Sheet:
    """Plain CKA of every run with the reference run: last layer, and the least over layers."""
    frame = view.against(view.reference_run, "cka", treatment=PLAIN).dropna(subset="cka").sort_values("layer")
    rows = []
    for run in view.order(frame.run):
        cka = frame[frame.run == run].cka
        rows.append((run, typeset.fixed(cka.iloc[-1], 3), typeset.fixed(cka.min(), 3)))
    return Sheet(["run", "CKA, last layer", "least over layers"], rows)


def _treated(view: View) -> bool:
    """Whether there is more to show beside the base than plain CKA."""
    frame = view.against(BASE, "cka").dropna(subset="cka")
    return bool((frame.treatment != PLAIN).any())


_TREATMENTS: dict[Treatment, str] = {
    "plain": "plain",
    "rms_normed": "RMS-normed",
    "without_outliers": "no outliers",
    "without_1_pc": "no first component",
    "without_3_pcs": "no first three",
}


def fixed_texts(view: View) -> list[str]:
    """What CKA on fixed texts is blind to."""
    n = view.frame("cka").n.dropna()
    if n.empty:
        return []
    hidden = "; the table without them shows what they hide" if _treated(view) else ""
    return [
        f"CKA compares {typeset.counted(n.max(), 'hidden state')} of fixed texts; it is blind to rotation and scale, "
        "and says nothing of what the models would write themselves. Plain CKA is that of the few dimensions "
        f"and directions with the most variance{hidden}."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Plain CKA at the last layer with the base and with the reference run."""
    rows = view.rows("cka")
    last = max((row["layer"] for row in rows), default=0)
    for row in rows:
        pair = {row["run_a"], row["run_b"]}
        if row["layer"] == last and row["treatment"] == PLAIN and len(pair) == 2:
            for name, one in (("base", BASE), ("reference", view.reference_run)):
                if one in pair:
                    [other] = pair - {one}
                    yield other, f"last_cka_to_{name}", row["cka"]
