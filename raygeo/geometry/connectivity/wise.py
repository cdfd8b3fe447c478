"""WiSE-FT: how likelihood, accuracy and calibration change as a run's delta is switched on, and beyond it.

Wortsman et al., arXiv:2109.01903: base + alpha delta. Averages of a model with its base can fail because the tuned end
is over-confident (Lin et al., arXiv:2309.17230), so calibration stands beside accuracy.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from raygeo.geometry.connectivity.evaluator import Evaluator, flips
from raygeo.geometry.connectivity.measures import AccuracySettings
from raygeo.geometry.probes import Probe
from raygeo.rollouts.grading import Grading
from raygeo.settings import content_key
from raygeo.store import AnyPath
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload


class WiseSettings(AccuracySettings):
    """Where the lines from the base to the runs are measured."""

    alphas: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), min_length=1)
    """Multiples of the delta; 0 is the base, 1 the trained run."""
    accuracy_problems: int = Field(0, ge=0)
    """How many problems (the first ones) the accuracy is measured on, a generation each alpha; 0 turns it off."""


class Wise(Workload):
    """The line from the base to every run at each alpha; one task a run.

    The probe is halved: ``chosen_loss`` is the NLL on one half, by which a best alpha may be chosen, and all else is
    measured on the other half and on the problems. ``false_false_true`` is the share of problems that base and run both
    get wrong and the point between or beyond them right, ``true_true_false`` the reverse.

    Args:
        settings: alphas and sizes.
        runs: the runs, the base among them or not.
        base: folder of the base student.
        probe: probe file.
        problems: (prompt, gold answer) pairs for the accuracy; may be empty.
        grading: how a completion is judged against the gold answer.
    """

    name = "wise"
    tables = ("wise",)

    def __init__(
        self,
        settings: WiseSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        problems: Sequence[tuple[str, str]],
        grading: Grading,
    ):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.probe = probe
        self.problems = list(problems[: settings.accuracy_problems])
        self.grading: Grading = grading

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        inputs = content_key(self.settings, Probe.load(self.probe).key, self.problems, self.grading)
        return [
            Task(content_key(self.name, inputs, run.name, run.key), 1.0, run, f"line from the base through {run.name}")
            for run in self.runs
        ]

    def setup(self) -> Evaluator:
        """Load the base student once, halve the probe and tokenise what is measured."""
        probe = Probe.load(self.probe)
        return Evaluator.open(self.settings, self.base, self.runs, probe, self.problems, self.grading)

    def compute(self, state: Evaluator, payload: Run) -> dict[str, Rows]:
        """Measure one line."""
        nothing = Run("", "", None)
        ends = {0.0: state.evaluate_run(nothing), 1.0: state.evaluate_run(payload)}
        ends_wrong = [end.wrong for end in ends.values() if end.wrong is not None]
        rows: Rows = []
        for alpha in sorted(set(self.settings.alphas)):
            terms = payload.mixture(alpha) if alpha else []
            found = ends[alpha] if alpha in ends else state.evaluate(terms)
            row: dict[str, Any] = {"run": payload.name, "alpha": alpha, "chosen_loss": state.choose_by(terms)}
            row |= state.columns(found, self.settings)
            if found.wrong is not None:
                row |= flips(found.wrong, ends_wrong)
            rows.append(row)
        return {"wise": rows}
