"""Representation drift: how far every layer's hidden states moved from the base's, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from raygeo.data.probes import Probe
from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import percentile_intervals, resampled_means, token_means
from raygeo.geometry.representation.drift import text_drift
from raygeo.geometry.representation.features import hidden_states
from raygeo.models.batches import Batch
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload


class DriftSettings(Settings):
    """How drift is measured."""

    bootstrap: int = Field(2000, ge=100)
    """Resamples of texts behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling, the same for all runs."""
    batch_size: int = Field(16, ge=1)
    """Texts per forward pass; has no effect on the numbers beyond rounding."""


@dataclass
class _State:
    weights: MixedWeights
    batches: list[Batch]


class Drift(Workload):
    """Means over completion tokens of ``token_drift`` at every layer; one task a run.

    States of the base and of the run are made side by side, a batch at a time, and reduced to sums a text. Layer 0 is
    the embeddings, layer L the last block after the final norm. Unlike CKA, drift is not blind to rotation and scale.
    Rows are null where a token's state is zero.

    Args:
        settings: sizes.
        runs: the runs; the base among them has no drift and no row.
        base: folder of the base student.
        probe: probe file.
    """

    name = "drift"
    tables: ClassVar = {
        "drift": schema(
            """Token means to the base: `change` is |h - h_base| / |h_base|; `n` counts texts, over which intervals are
            made.""",
            "run: text; layer: int; cosine, cosine_low, cosine_high, change, change_low, change_high: float; n, "
            "tokens: int",
        )
    }
    batch_settings: ClassVar = ("batch_size",)

    def __init__(self, settings: DriftSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        probe = Probe.load(self.probe).key
        return [
            Task(self.key(self.settings, probe, run.name, run.key), 1.0, run, f"drift of {run.name}")
            for run in self.runs
        ]

    def setup(self) -> _State:
        """Load the base student and tokenised texts once."""
        student = ResidentStudent.load(self.base, self.runs)
        batches = Probe.load(self.probe).batches(student.pad_id, self.settings.batch_size)
        return _State(student.weights, batches)

    def compute(self, state: _State, payload: Run) -> dict[str, Rows]:
        """Measure one run at every layer.

        Raises:
            DeltaError: its hidden states are not finite.
        """
        parts = []
        with state.weights.mixed(payload.mixture()) as model:
            for batch in state.batches:
                states = hidden_states(model, batch)
                if not all(bool(torch.isfinite(layer).all()) for layer in states):
                    raise DeltaError(f"the hidden states of {payload.name} are not finite; it diverged, leave it out.")
                with state.weights.unmixed():
                    base = hidden_states(model, batch)
                parts.append(text_drift(states, base, batch.mask).numpy())
        sums = np.concatenate(parts)  # [N, L + 1, 2]
        tokens = np.concatenate([batch.mask.sum(-1).numpy() for batch in state.batches]).astype(np.float64)
        means = token_means(sums, tokens)
        options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
        resampled = resampled_means(sums, tokens, **options)
        rows: Rows = []
        for layer, (cosine, change) in enumerate(means.tolist()):
            spread = percentile_intervals(resampled[:, layer], len(tokens))
            finite = bool(np.isfinite(sums[:, layer]).all())
            values = {"cosine": cosine, "change": change} | {
                f"{name}_{side}": value
                for name, interval in zip(("cosine", "change"), spread, strict=True)
                for side, value in interval._asdict().items()
            }
            rows.append(
                {"run": payload.name, "layer": layer, "n": len(tokens), "tokens": int(tokens.sum())}
                | (values if finite else {})
            )
        return {"drift": rows}
