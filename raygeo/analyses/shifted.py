"""Accuracy over all benchmarks of one shift together."""

from raygeo.report.view import View


def shifted_accuracy(view: View, shift: str) -> tuple[list[str], dict[str, float]]:
    """The benchmarks of a ``shift``, and each run's accuracy over all answers to their problems together.

    Runs that did not answer every benchmark of the shift are left out. A benchmark of unknown shift has none.
    """
    frame = view.frame("accuracy")
    shifts = dict.fromkeys(frame.benchmark, "none") | view.shifts
    names = [benchmark for benchmark, its in shifts.items() if its == shift]
    frame = frame[frame.benchmark.isin(names)]
    asked = {run: rows for run, rows in frame.groupby("run", sort=False) if len(rows) == len(names)}
    return names, {str(run): float(rows.correct.sum() / rows.n.sum()) for run, rows in asked.items()}
