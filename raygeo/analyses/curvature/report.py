"""What is shown of curvature in one line a run: columns of the results, caveats, metrics."""

from collections.abc import Iterator, Mapping

import pandas as pd

from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.report import typeset
from raygeo.report.sheets import Cell, share, with_interval
from raygeo.report.verdict import Finding
from raygeo.report.view import View
from raygeo.tables import BASE, LORA


def first_space(view: View, quantity: str) -> tuple[pd.DataFrame, str]:
    """Rows of ``quantity`` for the first (operator, space) that has it, so that like meets like, and its name."""
    frame = view.frame("curvature", quantity=quantity).dropna(subset="value")
    if frame.empty:
        return frame, ""
    first = frame.iloc[0]
    same = (frame.operator == first.operator) & (frame.space == first.space)
    return frame[same].reset_index(drop=True), f"{first.operator}, {first.space}"


def operators(settings: CurvatureSettings) -> list[str]:
    """The operators that are measured at runs; none where only the span is asked for, which takes all runs."""
    return ["hessian", "ggn"][: 1 + settings.ggn] if _first(settings) else []


def first_place(settings: CurvatureSettings, name: str) -> CurvatureSettings:
    """Settings of the first space alone, and of the GGN only where the metric ``name`` is of it."""
    return settings.model_copy(update={"spaces": _first(settings), "ggn": name.endswith("/ggn")})


def over_changed(settings: CurvatureSettings) -> bool:
    """Whether the first space is the weights that any run changed."""
    return _first(settings) == ("delta",)


def _first(settings: CurvatureSettings) -> tuple[str, ...]:
    return tuple(space for space in settings.spaces if space != "span")[:1]


def eigenvalue_cells(view: View) -> Mapping[str, Cell]:
    """The largest eigenvalue at each run."""
    found, _ = first_space(view, "eigenvalue")
    return {run: typeset.significant(value) for run, value in found.groupby("run").value.max().items()}


def trace_cells(view: View) -> Mapping[str, Cell]:
    """The trace at each run, its interval below it."""
    found, _ = first_space(view, "trace")
    return {row.run: with_interval(row.value, row.low, row.high) for row in found.itertuples()}


def flattened(view: View) -> Iterator[Finding]:
    """How the largest eigenvalue of each run compares with the base's, and with what seeds alone change."""
    found, space = first_space(view, "eigenvalue")
    top = found.groupby("run").value.max()
    runs = top[top.index != BASE].sort_values()
    if runs.empty:
        return
    base = f"{typeset.significant(top[BASE])} at the base and " if BASE in top.index else ""
    spread, where = f"{typeset.significant(runs.iloc[0])} ({runs.index[0]})", "run"
    if len(runs) > 1:
        spread, where = f"from {spread} to {typeset.significant(runs.iloc[-1])} ({runs.index[-1]})", "runs"
    configurations: dict[object, list[float]] = {}
    for name, value in runs.items():
        if name in view.conditions:
            configurations.setdefault(view.conditions[name].configuration, []).append(value)
    ratios = [max(values) / min(values) for values in configurations.values() if len(values) > 1 and min(values) > 0]
    seeds = f"; at seeds of one configuration it differs by up to {_ratio(max(ratios))}" if ratios else ""
    yield Finding(
        f"The largest eigenvalue of the Hessian ({space}) is {base}{spread} at the {where}{seeds}. It is that of one "
        "set of texts and has no interval over texts.",
        "table-curvature-curvature",
    )


def _ratio(ratio: float) -> str:
    """How far above 1 it is: in per cent up to 2, a factor from there."""
    return share(ratio - 1) if ratio < 2 else f"a factor of {typeset.significant(ratio, 2)}"


_ESTIMATES = {"trace": "traces", "density": "densities"}


def scalar(view: View) -> list[str]:
    """What the curvature is that of, and how its estimates are to be read."""
    frame = view.frame("curvature")
    if frame.empty:
        return []
    tokens = frame.tokens.dropna()
    size = f" over {typeset.count(tokens.max())} tokens" if len(tokens) else ""
    sentences = [
        f"Curvature is that of one probe's NLL{size}, the same for all runs: it is not the sharpness of the loss a run "
        "was trained on."
    ]
    estimated = set(frame.quantity[frame.low.notna()])
    estimates = [what for of, what in _ESTIMATES.items() if of in estimated]
    if estimates:
        sentences.append(
            f"{' and '.join(estimates).capitalize()} are estimates from random vectors, given with 95 % intervals "
            "between them."
        )
    if "density" in estimated:
        sentences.append(
            "Densities are resolved no more finely than the smoothing written beside them, and random vectors miss "
            "single eigenvalues that are not marked."
        )
    errors = frame[frame.quantity == "product_error"]
    if not errors.empty:
        against = "between lengths of the step" if (errors.name == "step").any() else "against the exact product"
        sentences.append(
            "Hessian-vector products are differences of gradients at two points, an approximation: along the first "
            f"eigenvectors they are off by up to {share(errors.value.max())} ({against}). Whatever else is "
            "made of such products inherits an error of that order."
        )
    if (frame.space == LORA).any():
        sentences.append(
            "Curvature over LoRA factors depends on how a delta is split into B and A (scaling one up and the other "
            "down changes it and not the model), so it compares neither runs nor spaces."
        )
    if frame.space.fillna("").str.startswith("block ").any():
        sentences.append("Spectra of single blocks leave out the curvature between blocks: they do not add up.")
    return sentences


def span(view: View) -> list[str]:
    """What predicted paths rest on."""
    if view.frame("expansions")["at"].notna().sum() == 0:
        return []
    return [
        "Predicted paths use the Hessian within the span of the runs' deltas only and are exact where the NLL is "
        "quadratic; agreement on a path between runs says nothing of directions that no run took."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """The largest eigenvalue and the trace of every operator, in the first space that it was taken in."""
    spaces: dict[str, str] = {}
    for row in view.rows("curvature"):
        operator = row["operator"]
        if operator is None or row["space"] != spaces.setdefault(operator, row["space"]):
            continue
        if row["quantity"] == "eigenvalue" and row["index"] == 0:
            yield row["run"], f"top_eigenvalue/{operator}", row["value"]
        elif row["quantity"] == "trace":
            yield row["run"], f"trace/{operator}", row["value"]
