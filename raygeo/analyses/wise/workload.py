"""WiSE-FT: how likelihood, accuracy and calibration change as a run's delta is switched on, and beyond it.

Wortsman et al., arXiv:2109.01903: base + alpha delta. Averages of a model with its base can fail because the tuned end
is over-confident (Lin et al., arXiv:2309.17230), so calibration stands beside accuracy.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from raygeo.analyses.between import AccuracySettings, LikelihoodSettings, ProbeWorkload
from raygeo.analyses.soups.workload import EVALUATION
from raygeo.geometry.connectivity.confidence import REVISION
from raygeo.geometry.connectivity.evaluator import Evaluator, flips
from raygeo.models.run import Run
from raygeo.tables import schema
from raygeo.workload import Rows, Task


class LineSettings(LikelihoodSettings):
    """Where the lines from the base to the runs are measured."""

    alphas: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), min_length=1)
    """Multiples of the delta; 0 is the base, 1 the trained run."""


class WiseSettings(AccuracySettings, LineSettings):
    """Where the lines from the base to the runs are measured, and whether accuracy is."""

    accuracy_problems: int = Field(0, ge=0)
    """How many problems (the first ones) the accuracy is measured on, a generation each alpha; 0 turns it off."""


class Wise(ProbeWorkload):
    """The line from the base to every run at each alpha; one task a run.

    The probe is halved: one half is for choosing an alpha, and all else is measured on the other half and on the
    problems.
    """

    name = "wise"
    revision = REVISION
    tables: ClassVar = {
        "wise": schema(
            """Base + `alpha` delta: `chosen_nll` is the NLL on the other half of the texts, by which a best alpha may
            be chosen; the rest as in `soups`, of the point between or beyond base and run as their average.""",
            f"run: text; alpha, chosen_nll: float; {EVALUATION}",
        )
    }
    settings: WiseSettings
    in_keys = LineSettings

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        return [
            Task(self.key(*self.inputs, run.name, run.key), 1.0, run, f"line from the base through {run.name}")
            for run in self.trained
        ]

    def compute(self, state: Evaluator, payload: Run) -> dict[str, Rows]:
        """Measure one line.

        Raises:
            DeltaError: a likelihood is not finite.
        """
        ends = {0.0: state.evaluations.at_run(_BASE), 1.0: state.evaluations.at_run(payload)}
        ends_wrong = [end.wrong for end in ends.values() if end.wrong is not None]
        rows: Rows = []
        for alpha in sorted(set(self.settings.alphas)):
            terms = payload.mixture(alpha) if alpha else []
            found = ends[alpha] if alpha in ends else state.evaluations.at(terms)
            row: dict[str, Any] = {"run": payload.name, "alpha": alpha, "chosen_nll": state.chosen.at(terms)}
            row |= state.columns(found, resamples=self.settings.bootstrap, seed=self.settings.seed)
            if found.wrong is not None:
                row |= flips(found.wrong, ends_wrong)
            rows.append(row)
        return {"wise": rows}


_BASE = Run("", "", None)
