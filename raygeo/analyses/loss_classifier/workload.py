"""Can the loss of a run be told from the norms and spectra of its delta? One seed left out at a time."""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from raygeo.geometry.connectivity.parts import part_of
from raygeo.geometry.weights.recognition import chance, permuted_accuracies, recognise
from raygeo.models.run import Run
from raygeo.records import RunRecord, Seed
from raygeo.settings import Settings
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

NORMS, RANKS = ("norm",), ("stable_rank", "effective_rank", "participation_rank")
FEATURES = {"norms": NORMS, "spectra": RANKS, "both": NORMS + RANKS}
"""What is told apart by: how far each module type moved, in how many directions, or both; columns of ``deltas``."""


class LossClassifierSettings(Settings):
    """Options of the permutation null."""

    permutations: int = Field(999, ge=99)
    """Labelings drawn for the null."""
    seed: int = Field(0, ge=0)
    """Seed of the labelings drawn."""


class LossClassifier(Workload):
    """Nearest-centroid recognition of losses, leave-one-seed-out; one task over all runs.

    Features are, by module type that all runs trained, the means over its matrices of the logarithms of columns of
    table ``deltas`` (``FEATURES``). All runs of one data order, that of the first stage, are held out together and
    predicted from the others, features standardised by those others alone (``weights.recognition``). ``chance`` is the
    accuracy of the most frequent loss; the null permutes losses among runs that agree in everything else, seeds and
    settings, for these alone would be one run if the loss did not matter (``weights.separation``). ``null_high`` is its
    95th percentile and ``p`` (1 + labelings at least as accurate) / (1 + draws), this one being among them. Where no
    two runs of different losses agree so, there is neither, and the ``reason`` is given.

    Only losses with runs of at least two seeds take part; where fewer than two losses have, there is one row that gives
    the ``reason``. A loss goes by its type, whatever its options, a run in stages by those of all of them.
    """

    name = "loss-classifier"
    tables: ClassVar = {
        "loss_classifier": schema(
            """How often the loss of a run is recognised by its delta, by `features`: "norms" of module types, "spectra"
            (ranks), or "both". `null_*` are accuracies with losses permuted among runs of the same settings and seeds;
            `reason` says why there is no accuracy, or no null.""",
            "features: text; runs, losses, seeds, dimension, correct: int; accuracy, chance, null_mean, null_high, p: "
            "float; draws: int; reason: text",
        ),
        "loss_predictions": schema(
            "What each run was taken for, by the runs of other seeds.", "features, run, loss, predicted: text"
        ),
    }

    def __init__(
        self,
        settings: LossClassifierSettings,
        runs: Sequence[Run],
        deltas: pa.Table,
        records: Mapping[str, RunRecord],
    ):
        self.settings = settings
        self.features = _features(deltas)
        self.known = [
            (run.name, label, _first(condition.seed), condition.surroundings)
            for run in runs
            if run.name in self.features
            and (record := records.get(run.name)) is not None
            and (label := record.label) is not None
            and (condition := record.condition) is not None
        ]

    def tasks(self) -> list[Task]:
        """One task over all runs, none if the training of none is known."""
        if not self.known:
            return []
        values = [self.features[run] for run, *_ in self.known]
        key = self.key(self.settings, self.known, [sorted(map(list, of.items())) for of in values])
        return [Task(key, 1.0, None, f"recognition of the losses of {len(self.known)} runs")]

    def setup(self) -> None:
        """Build nothing: the features are here."""

    def compute(self, state: None, payload: None) -> dict[str, Rows]:
        """Rows of both tables."""
        seeds: defaultdict[str, set[int | None]] = defaultdict(set)
        for _, loss, seed, _ in self.known:
            seeds[loss].add(seed)
        losses = sorted(loss for loss, of in seeds.items() if len(of) > 1)
        taken = [row for row in self.known if row[1] in losses]
        common = sorted(set.intersection(*(set(self.features[run]) for run, *_ in taken))) if taken else []
        if len(losses) < 2 or not common:
            return {"loss_classifier": [_without(losses, taken)], "loss_predictions": []}
        labels = np.array([losses.index(loss) for _, loss, *_ in taken])
        folds = _numbered([seed for _, _, seed, _ in taken])
        alike = _numbered([surroundings for *_, surroundings in taken])
        exchangeable = any(len(set(labels[alike == each])) > 1 for each in alike)
        rows, predictions = [], []
        for name, columns in FEATURES.items():
            kept = [key for key in common if key.partition(" ")[0] in columns]
            values = np.array([[self.features[run][key] for key in kept] for run, *_ in taken])
            predicted = recognise(values, labels, folds)
            correct = int((predicted == labels).sum())
            accuracy = correct / len(taken)
            row = {"features": name, "runs": len(taken), "losses": len(losses), "seeds": len(set(folds.tolist()))}
            row |= {"dimension": len(kept), "correct": correct, "accuracy": accuracy, "chance": chance(labels, folds)}
            if exchangeable:
                settings = self.settings
                null = permuted_accuracies(values, labels, folds, alike, settings.permutations, settings.seed)
                hits = int((null >= accuracy - 1e-12).sum())
                row |= {"null_mean": float(null.mean()), "null_high": float(np.quantile(null, 0.95)), "reason": ""}
                row |= {"p": (1 + hits) / (1 + len(null)), "draws": len(null)}
            else:
                row["reason"] = _UNLIKE
            rows.append(row)
            predictions += [
                {"features": name, "run": run, "loss": loss, "predicted": losses[label]}
                for (run, loss, *_), label in zip(taken, predicted, strict=True)
            ]
        return {"loss_classifier": rows, "loss_predictions": predictions}


def _features(deltas: pa.Table) -> dict[str, dict[str, float]]:
    """Means of logarithms by run and ``"column type"``; of matrices that moved alone."""
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in deltas.to_pylist():
        if row["scope"] == "module" and row["stable_rank"] is not None:
            for column in FEATURES["both"]:
                found[row["run"]][f"{column} {part_of(row['module'], 'module type')}"].append(math.log(row[column]))
    return {run: {key: fmean(values) for key, values in of.items()} for run, of in found.items()}


_UNLIKE = (
    "no two runs of different losses agree in settings and seeds, so that no labels are exchangeable: train losses "
    "with the same settings and seeds"
)


def _first(seed: Seed) -> int | None:
    """The seed of the data order that a run starts with."""
    return seed[0] if isinstance(seed, tuple) else seed


def _numbered(values: Sequence[Hashable]) -> np.ndarray:
    """Each value by its place among the different ones."""
    places = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return np.array([places[value] for value in values])


def _without(losses: list[str], taken: Sequence[object]) -> dict[str, object]:
    reason = "no module type was trained by all runs"
    if len(losses) < 2:
        reason = (
            f"{'one loss has' if losses else 'no loss has'} runs of two seeds, where two losses are needed: train "
            "every loss with several seeds"
        )
    return {"features": "", "runs": len(taken), "losses": len(losses), "reason": reason}
