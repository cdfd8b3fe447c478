"""Representation drift: how far every layer's hidden states moved from the base's, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.geometry.probes import Probe
from raygeo.geometry.representation.bootstrap import percentiles, resampled_means, token_means
from raygeo.geometry.representation.features import hidden_states
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.encoding import Batch
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload


class DriftSettings(Settings):
    """How drift is measured."""

    bootstrap: int = Field(2000, ge=100)
    """Resamples of texts behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling, the same for all runs."""
    batch_size: int = Field(16, ge=1)
    """Texts per forward pass; has no effect on the numbers beyond rounding."""


def token_drift(states: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine with the base's and relative change |h - h_base| / |h_base| of hidden states [..., d]: [...] fp64 each.

    Not finite where a state is zero, which has no direction.
    """
    h, b = states.double(), base.double()
    norms = h.norm(dim=-1), b.norm(dim=-1)
    return (h * b).sum(-1) / (norms[0] * norms[1]), (h - b).norm(dim=-1) / norms[1]


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
    tables = ("drift",)

    def __init__(self, settings: DriftSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        inputs = content_key(self.settings, Probe.load(self.probe).key)
        return [
            Task(content_key(self.name, inputs, run.name, run.key), 1.0, run, f"drift of {run.name}")
            for run in self.runs
        ]

    def setup(self) -> _State:
        """Load the base student and tokenised texts once."""
        model, tokenizer = load_student(self.base, device=default_device())
        opened = [delta for run in self.runs if (delta := run.open()) is not None]
        batches = Probe.load(self.probe).batches(tokenizer.pad_token_id, self.settings.batch_size)
        return _State(MixedWeights(model, {name for delta in opened for name in delta}), batches)

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
                parts.append(_text_sums(states, base, batch))
        sums = np.concatenate(parts)  # [N, L + 1, 2]
        tokens = np.concatenate([batch.mask.sum(-1).numpy() for batch in state.batches]).astype(np.float64)
        means = token_means(sums, tokens)
        options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
        resampled = resampled_means(sums, tokens, **options)
        rows: Rows = []
        for layer, (cosine, change) in enumerate(means.tolist()):
            spread = percentiles(resampled[:, layer], len(tokens))
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


def _text_sums(states: Sequence[Tensor], base: Sequence[Tensor], batch: Batch) -> np.ndarray:
    """Sums over completion tokens of both measures: [B, L + 1, 2] fp64."""
    mask = torch.nn.functional.pad(batch.mask, (1, 0)).to(states[0].device)
    layers = []
    for h, b in zip(states, base, strict=True):
        measures = torch.stack(token_drift(h, b), -1)
        layers.append(torch.where(mask[..., None], measures, torch.zeros_like(measures)).sum(1))
    return torch.stack(layers, 1).cpu().numpy()
