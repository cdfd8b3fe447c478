"""CKA between layers: which layer of a run represents the texts as which layer of another does."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from raygeo.analyses.cka.representations import FeatureSettings, Representations, comparable
from raygeo.geometry.representation.cka import align
from raygeo.geometry.representation.features import PLAIN, Treatment
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload


class LayerCKASettings(FeatureSettings):
    """What is compared, over which minibatches, and how many layers."""

    max_layers: int = Field(9, ge=2)
    """Where a model has more layers, the embeddings included, so many of them, evenly spaced, the first and last among
    them; pairs grow with the square."""
    treatment: Treatment = PLAIN
    """What is taken out of the features first, see ``cka.treatments``."""


def spaced_layers(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` layers, evenly spaced, the first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


class LayerCKA(Workload):
    """CKA of all pairs of layers: of the base with itself, of every run with the base and with the reference run.

    One task a pair of runs. Kernels are kept as in ``CKA``.

    Args:
        settings: pooling, minibatches and layers.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
        reference: name of the run that others are compared with besides the base.

    Raises:
        DataError: the probe has fewer than 4 sequences.
    """

    name = "layer-cka"
    tables: ClassVar = {
        "layer_cka": schema(
            """Unbiased CKA of layer `layer_a` of run a with layer `layer_b` of run b, where 0 is the embeddings;
            `treatment` says what was taken out of the features first, "plain" nothing; `n` counts vectors.""",
            "run_a, run_b: text; layer_a, layer_b: int; treatment: text; cka, low, high: float; n: int",
        )
    }
    batch_settings: ClassVar = ("forward_batch_size",)

    def __init__(self, settings: LayerCKASettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath, reference: str):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe
        self.reference = reference

    def tasks(self) -> list[Task]:
        """One task a pair; all cost the same."""
        probe = comparable(self.probe).key
        return [
            Task(
                self.key(self.settings, probe, [[run.name, run.key] for run in (a, b)]),
                1.0,
                (a, b),
                f"CKA between layers of {a.name} and {b.name}",
            )
            for a in self.runs
            for b in self.runs
            if a.delta is None or (a.name == self.reference and b.delta is not None and a != b)
        ]

    def setup(self) -> Representations:
        """Load the base student and the probe once."""
        return Representations.open(self.settings, self.runs, self.base, self.probe)

    def compute(self, state: Representations, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Align all chosen layers of one pair."""
        first, second = (state.kernels(run).treated(self.settings.treatment) for run in payload)
        layers, batches = spaced_layers(len(first), self.settings.max_layers), state.batches
        rows: Rows = []
        for a in layers:
            for b, found in zip(layers, align(first[[a]], second[layers], batches), strict=True):
                rows.append(
                    {
                        "run_a": payload[0].name,
                        "run_b": payload[1].name,
                        "layer_a": a,
                        "layer_b": b,
                        "treatment": self.settings.treatment,
                        "cka": found.cka,
                        "low": found.low,
                        "high": found.high,
                        "n": first.shape[-1],
                    }
                )
        return {"layer_cka": rows}
