"""Which benchmarks are of what a study trains for, and which say what else became of a model."""

from collections.abc import Sequence

import pandas as pd

from raygeo.report.view import View

OOD, RETENTION = "ood", "retention"
"""``shift`` of benchmarks that are near what is trained for but not of it, and of what the base could do before."""


def shifted(benchmarks: pd.DataFrame, shift: str) -> list[str]:
    """Names of the benchmarks of a shift, in order, from the table ``benchmarks``."""
    return benchmarks.benchmark[benchmarks["shift"] == shift].tolist()


def ood_accuracy(view: View) -> tuple[Sequence[str], dict[str, float]]:
    """The benchmarks out of distribution, and each run's accuracy over all answers to their problems together.

    Runs that did not answer all of them are left out.
    """
    names = shifted(view.frame("benchmarks"), OOD)
    frame = view.frame("accuracy")
    frame = frame[frame.benchmark.isin(names)]
    asked = {run: rows for run, rows in frame.groupby("run", sort=False) if len(rows) == len(names)}
    return names, {str(run): float(rows.correct.sum() / rows.n.sum()) for run, rows in asked.items()}
