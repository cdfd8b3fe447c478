"""Averages of the weights of several runs: do they lie in one basin, and is their mean better than its best part?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from raygeo.analyses.between import AccuracySettings, LikelihoodSettings, ProbeWorkload
from raygeo.data.exam import Exam
from raygeo.geometry.bootstrap import percentile_interval, resampled_means
from raygeo.geometry.connectivity.averages import average, greedy
from raygeo.geometry.connectivity.confidence import REVISION
from raygeo.geometry.connectivity.evaluator import Evaluator, flips
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task

UNIFORM, GREEDY = "uniform", "greedy"
EVALUATION = (
    "nll, nll_low, nll_high: float; n, tokens: int; confidence, agreement, ece, accuracy: float; problems: int; "
    "false_false_true, true_true_false: float"
)
"""Columns of what a mixture is evaluated by."""


class SoupSettings(AccuracySettings, LikelihoodSettings):
    """How averages of runs are measured."""

    accuracy_problems: int = Field(0, ge=0)
    """How many problems (the first ones) the accuracy is measured on, a generation each average; 0 turns it off."""

    def mixed(self, runs: int) -> int:
        """All of them."""
        return runs


class Soups(ProbeWorkload):
    """Every run, the uniform average of all, of each group, and the greedy soup; one task each.

    The probe is halved: the greedy soup is chosen on one half, by its NLL there, and all are measured on the other.

    Args:
        settings: sizes.
        runs: the runs; the base, if it is among them, is measured but never averaged.
        base: folder of the base student.
        probe: probe file.
        exam: problems for the accuracy; None where there are none.
        groups: names of runs to average, by the name of the group; groups of one are passed over.
    """

    name = "soups"
    revision = REVISION
    tables: ClassVar = {
        "soups": schema(
            """Runs alone (`kind` is "run") and averages of their weights ("uniform", "group" or "greedy") on texts that
            had no part in choosing the greedy one. `barrier` is the NLL less the members' mean NLL, with a 95 % paired
            bootstrap interval; confidence, agreement and ece are over `tokens` tokens of the `n` texts;
            false_false_true is the share of `problems` that all members get wrong and their average right (Lin et al.,
            arXiv:2309.17230), true_true_false the reverse.""",
            f"soup, kind: text; members: texts; {EVALUATION}; barrier, barrier_low, barrier_high: float",
        )
    }
    settings: SoupSettings

    def __init__(
        self,
        settings: SoupSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        exam: Exam | None,
        groups: Mapping[str, Sequence[str]],
    ):
        super().__init__(settings, runs, base, probe, exam)
        self.groups = groups

    def tasks(self) -> list[Task]:
        """One task a run and an average; the greedy soup, with one pass more a run, is the longest."""
        inputs, trained = self.inputs, self.trained
        kinds: list[tuple[str, str, list[Run]]] = [("run", run.name, [run]) for run in self.runs]
        if len(trained) > 1:
            kinds += [(UNIFORM, UNIFORM, trained), (GREEDY, GREEDY, trained)]
            for group, names in self.groups.items():
                members = [run for run in trained if run.name in names]
                if 1 < len(members) < len(trained):
                    kinds.append(("group", group, members))
        return [
            Task(
                self.key(*inputs, kind, name, [[run.name, run.key] for run in members]),
                float(2 * len(members) if kind == GREEDY else len(members)),
                (kind, name, members),
                f"{kind} soup {name}" if kind != "run" else f"evaluation of {name}",
            )
            for kind, name, members in kinds
        ]

    def compute(self, state: Evaluator, payload: tuple[str, str, list[Run]]) -> dict[str, Rows]:
        """Make and measure one average.

        Raises:
            DeltaError: its likelihood is not finite.
        """
        kind, name, runs = payload
        options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
        members = greedy(runs, state.chosen.at) if kind == GREEDY else runs
        alone = [state.evaluations.at_run(run) for run in members]
        found = alone[0] if len(members) == 1 else state.evaluations.at(average(members))
        row: dict[str, Any] = {"soup": name, "kind": kind, "members": [run.name for run in members]}
        row |= state.columns(found, **options)
        if kind != "run":
            height = found.sums - np.mean([each.sums for each in alone], axis=0)
            low, high = percentile_interval(resampled_means(height, state.counts, **options))
            row |= {"barrier": float(height.sum() / state.counts.sum()), "barrier_low": low, "barrier_high": high}
            if found.wrong is not None:
                row |= flips(found.wrong, [each.wrong for each in alone if each.wrong is not None])
        return {"soups": [row]}
