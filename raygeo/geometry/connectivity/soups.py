"""Averages of the weights of several runs: do they lie in one basin, and is their mean better than its best part?

Uniform and greedy soups are those of Wortsman et al. (arXiv:2203.05482, recipe 1). An average is taken on merged
weights, so that of LoRA runs is exact.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from raygeo.geometry.connectivity.barriers import percentiles, resampled_losses
from raygeo.geometry.connectivity.evaluator import Evaluator, flips
from raygeo.geometry.connectivity.measures import AccuracySettings
from raygeo.geometry.connectivity.mixtures import Mixture
from raygeo.geometry.probes import Probe
from raygeo.rollouts.grading import Grading
from raygeo.settings import content_key
from raygeo.store import AnyPath
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

UNIFORM, GREEDY = "uniform", "greedy"


class SoupSettings(AccuracySettings):
    """How averages of runs are measured."""

    accuracy_problems: int = Field(0, ge=0)
    """How many problems (the first ones) the accuracy is measured on, a generation each average; 0 turns it off."""


class Soups(Workload):
    """Every run, the uniform average of all, of each group, and the greedy soup; one task each.

    The probe is halved: the greedy soup is chosen on one half, and all are measured on the other. It takes runs by
    their NLL there, the best first, and keeps each that does not raise the NLL of the average so far. ``barrier`` is
    the loss of an average less the mean loss of its members, with a paired bootstrap interval over texts; the
    calibration is that of tokens of the measured texts. ``false_false_true`` is the share of problems that every member
    gets wrong and their average right (Lin et al., arXiv:2309.17230), ``true_true_false`` the reverse.

    Args:
        settings: sizes.
        runs: the runs; the base, if it is among them, is measured but never averaged.
        base: folder of the base student.
        probe: probe file.
        problems: (prompt, gold answer) pairs for the accuracy; may be empty.
        grading: how a completion is judged against the gold answer.
        groups: names of runs to average, by the name of the group; groups of one are passed over.
    """

    name = "soups"
    tables = ("soups",)

    def __init__(
        self,
        settings: SoupSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        problems: Sequence[tuple[str, str]],
        grading: Grading,
        groups: Mapping[str, Sequence[str]],
    ):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe
        self.problems = list(problems[: settings.accuracy_problems])
        self.grading: Grading = grading
        self.groups = groups

    def tasks(self) -> list[Task]:
        """One task a run and an average; the greedy soup, with one pass more a run, is the longest."""
        inputs = content_key(self.settings, Probe.load(self.probe).key, self.problems, self.grading)
        trained = [run for run in self.runs if run.delta is not None]
        kinds: list[tuple[str, str, list[Run]]] = [("run", run.name, [run]) for run in self.runs]
        if len(trained) > 1:
            kinds += [(UNIFORM, UNIFORM, trained), (GREEDY, GREEDY, trained)]
            for group, names in self.groups.items():
                members = [run for run in trained if run.name in names]
                if 1 < len(members) < len(trained):
                    kinds.append(("group", group, members))
        return [
            Task(
                content_key(self.name, inputs, kind, name, [[run.name, run.key] for run in members]),
                float(2 * len(members) if kind == GREEDY else len(members)),
                (kind, name, members),
                f"{kind} soup {name}" if kind != "run" else f"evaluation of {name}",
            )
            for kind, name, members in kinds
        ]

    def setup(self) -> Evaluator:
        """Load the base student once, halve the probe and tokenise what is measured."""
        probe = Probe.load(self.probe)
        return Evaluator.open(self.settings, self.base, self.runs, probe, self.problems, self.grading)

    def compute(self, state: Evaluator, payload: tuple[str, str, list[Run]]) -> dict[str, Rows]:
        """Make and measure one average."""
        kind, name, runs = payload
        members = greedy(state, runs) if kind == GREEDY else runs
        alone = [state.evaluate_run(run) for run in members]
        found = alone[0] if len(members) == 1 else state.evaluate(average(members))
        row: dict[str, Any] = {"soup": name, "kind": kind, "members": [run.name for run in members]}
        row |= state.columns(found, self.settings)
        if kind != "run":
            counts = state.measured.counts
            height = found.sums - np.mean([each.sums for each in alone], axis=0)
            options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
            low, high = percentiles(resampled_losses(height[None], counts, **options))
            row |= {"barrier": float(height.sum() / counts.sum()), "barrier_low": low, "barrier_high": high}
            wrong = [each.wrong for each in alone if each.wrong is not None]
            if found.wrong is not None:
                row |= flips(found.wrong, wrong)
        return {"soups": [row]}


def average(runs: Sequence[Run]) -> Mixture:
    """The mean of the weights of ``runs`` as a mixture."""
    return [term for run in runs for term in run.mixture(1 / len(runs))]


def greedy(state: Evaluator, runs: Sequence[Run]) -> list[Run]:
    """Members of the greedy soup of ``runs``, in the order they were taken."""
    alone = sorted((state.choose_by(run.mixture()), i) for i, run in enumerate(runs))
    best, first = alone[0]
    members = [runs[first]]
    for _, i in alone[1:]:
        tried = state.choose_by(average([*members, runs[i]]))
        if tried <= best:
            best, members = tried, [*members, runs[i]]
    return members
