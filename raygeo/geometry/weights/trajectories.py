"""How each run moved while it trained: the deltas kept on the way, against the final one and the reference run's."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raygeo.errors import DeltaError
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.growth import LAWS
from raygeo.geometry.weights.norms import BaseWeights
from raygeo.geometry.weights.similarity import pairwise_cosine
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.delta import Delta, Dense, Difference, Entry, LowRank, open_delta
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload


class TrajectorySettings(Settings):
    """Trajectories have no options."""


class Trajectories(Workload):
    """The way of every run that kept deltas while training; one task a run.

    Table ``trajectories`` has one row a kept step, the final one included: norm and relative norm; cosine to the final
    delta; cosine to the reference run's delta at the same step (null for the reference run itself, where that run kept
    no such step, and between LoRA and full deltas); ``distance`` from the kept step before, from the base at the first;
    ``path_length``, the sum of the distances so far, which is a lower bound of the way travelled, as a chord is of its
    arc; ``straightness``, norm over path length; and the cosine of the last move to the one before. Whatever would be
    divided by zero is null.

    Table ``trajectory_fits`` has the laws of ``raygeo.geometry.weights.growth`` for the norm as a function of the step.

    ``steps`` is the last step of every run by name, at which its final delta stands. Of full deltas a block of rows of
    one parameter is in memory at a time, of LoRA deltas the factors of five entries.
    """

    name = "trajectories"
    tables = ("trajectories", "trajectory_fits")

    def __init__(
        self, settings: TrajectorySettings, runs: Sequence[Run], base: AnyPath, steps: Mapping[str, int], reference: str
    ):
        self.settings = settings
        self.runs = [run for run in runs if run.snapshots is not None]
        self.base = base
        self.steps = dict(steps)
        self.reference = next((run for run in runs if run.name == reference), None)

    def tasks(self) -> list[Task]:
        """One task a run that kept deltas; all cost the same."""
        reference = self.reference and [self.reference.name, self.reference.key]
        return [
            Task(
                content_key(self.name, self.settings, [run.name, run.key], reference),
                1.0,
                run,
                f"trajectory of {run.name}",
            )
            for run in self.runs
        ]

    def setup(self) -> BaseWeights:
        """Open the base checkpoint; it remembers norms from task to task."""
        return BaseWeights(self.base)

    def compute(self, state: BaseWeights, payload: Run) -> dict[str, Rows]:
        """Rows of one run."""
        deltas = self._kept(payload)
        rows = _way(list(deltas.values()), state)
        other = self.reference
        others = self._kept(other) if other is not None and other.name != payload.name else {}
        for (step, delta), row in zip(deltas.items(), rows, strict=True):
            row |= {"run": payload.name, "step": step, "cosine_reference": _cosine_to(others.get(step), delta)}
        return {"trajectories": rows, "trajectory_fits": _fits(payload.name, rows)}

    def _kept(self, run: Run) -> dict[int, Delta]:
        """The run's deltas by step, ascending, the final one last."""
        assert run.delta is not None
        last = self.steps[run.name]
        folders = {last: Path(run.delta)}
        if run.snapshots is not None:
            found = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in Path(run.snapshots).iterdir())
            folders |= {int(match[1]): folder for match, folder in found if match and int(match[1]) < last}
        return {step: open_delta(folders[step]) for step in sorted(folders)}


def difference(later: Entry, earlier: Entry) -> Entry:
    """``later - earlier`` in fp64, for entries of one run.

    LoRA factors are not multiplied out: B1 A1 - B0 A0 = [B1 - B0, B0] [A1; A1 - A0]. Every term is as small as the
    move is, so its norm has a relative error of about 1e-14 even where the difference of the squared norms of two far
    but close points would have lost all digits.

    Raises:
        DeltaError: the entries differ in kind, shape, rank or scale.
    """
    if isinstance(later, Dense) and isinstance(earlier, Dense) and later.shape == earlier.shape:
        return Dense(Difference(later.source, earlier.source, torch.float64))
    if isinstance(later, LowRank) and isinstance(earlier, LowRank) and _layout(later) == _layout(earlier):
        b, a = earlier.b.double(), later.a.double()
        return LowRank(torch.cat([later.b.double() - b, b], dim=1), torch.cat([a, a - earlier.a.double()]), later.scale)
    raise DeltaError("two deltas kept by one run do not have the same format; delete its snapshots and train it again.")


def _layout(entry: LowRank) -> tuple[Any, ...]:
    return entry.b.shape, entry.a.shape, entry.scale


def _way(deltas: list[Delta], base: BaseWeights) -> Rows:
    """Rows of the kept deltas of one run in order, without what concerns other runs."""
    final = deltas[-1]
    if any(set(delta) != set(final) for delta in deltas):
        raise DeltaError(f"{final.folder} has other parameters than the deltas kept before it; train the run again.")
    energy, along, moved, turned = np.zeros((4, len(deltas)))
    for name in final:
        end = final[name]
        base.check(name, end)
        entry: Entry | None = None
        move: Entry | None = None
        for i, delta in enumerate(deltas):
            last_entry, last_move = entry, move
            entry = end if delta is final else delta[name]
            move = entry if last_entry is None else difference(entry, last_entry)
            products = linalg.gram([entry, end, move, *([last_move] if last_move is not None else [])])
            energy[i] += products[0, 0].item()
            along[i] += products[0, 1].item()
            moved[i] += products[2, 2].item()
            if last_move is not None:
                turned[i] += products[2, 3].item()
    norms, distances = np.sqrt(energy.clip(min=0)), np.sqrt(moved.clip(min=0))
    path = distances.cumsum()
    columns = {
        "norm": norms,
        "relative_norm": _ratio(norms, math.hypot(*(base.norm(name) for name in final))),
        "cosine_final": _ratio(along, np.sqrt(energy * energy[-1])).clip(-1, 1),
        "distance": distances,
        "path_length": path,
        "straightness": _ratio(norms, path),
        "cosine_previous": _ratio(turned, distances * np.append(0, distances[:-1])).clip(-1, 1),
    }
    return [
        {column: None if np.isnan(values[i]) else float(values[i]) for column, values in columns.items()}
        for i in range(len(deltas))
    ]


def _ratio(above: np.ndarray, below: np.ndarray | float) -> np.ndarray:
    """Quotient, NaN where ``below`` is zero."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=np.asarray(below) > 0)


def _cosine_to(other: Delta | None, delta: Delta) -> float | None:
    if other is None or other.low_rank != delta.low_rank:
        return None
    _, cosines = pairwise_cosine({"run": delta, "reference": other})
    return None if np.isnan(cosines[0, 1]) else float(cosines[0, 1])


def _fits(run: str, rows: Rows) -> Rows:
    t, norm = (np.array([row[column] for row in rows], dtype=np.float64) for column in ("step", "norm"))
    fits = {law: fit(t, norm) for law, fit in LAWS.items()}
    return [{"run": run, "law": law, "n": len(t)} | (asdict(fit) if fit else {}) for law, fit in fits.items()]
