"""Accuracy out of distribution, which diversity is shown beside."""

from raygeo.report.view import View


def ood_accuracy(view: View) -> tuple[list[str], dict[str, float]]:
    """The benchmarks out of distribution, and each run's accuracy over all answers to their problems together.

    Runs that did not answer all of them are left out.
    """
    names = [benchmark for benchmark, shift in view.shifts.items() if shift == "ood"]
    frame = view.frame("accuracy")
    frame = frame[frame.benchmark.isin(names)]
    asked = {run: rows for run, rows in frame.groupby("run", sort=False) if len(rows) == len(names)}
    return names, {str(run): float(rows.correct.sum() / rows.n.sum()) for run, rows in asked.items()}
