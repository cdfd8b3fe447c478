"""How well runs can be tuned further: the NLL of other texts after one fixed fine-tune from each run's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from raygeo.analyses.tunability.tuning import trainable, tune
from raygeo.data.passages import read_pairs
from raygeo.data.probes import Probe
from raygeo.data.revisions import renderer_revision
from raygeo.errors import DeltaError
from raygeo.generation.renderer import Renderer
from raygeo.geometry.bootstrap import Array, percentile_intervals, resampled_means, token_means
from raygeo.geometry.connectivity.measures import ProbeNLL, halves
from raygeo.geometry.curvature.chain import checkpointed
from raygeo.models.batches import TokenSequence
from raygeo.models.lora import LoraSettings
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import AnyPlace, Settings
from raygeo.store import AnyPath
from raygeo.tables import BASE, schema
from raygeo.workload import Rows, Task, Workload

OWN, NEW = "solutions", "pairs"
"""What is tuned on: held-out solutions, which are of the runs' own task, or new data."""


def _is_off(asked: bool) -> bool:
    return not asked


class RecipeSettings(Settings):
    """The fine-tune, the same from all weights."""

    steps: int = Field(20, ge=1)
    """Steps of AdamW (no weight decay, constant learning rate, gradients clipped at norm 1)."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate; that of all weights is usually ten times smaller than that of adapters."""
    batch_size: int = Field(8, ge=1)
    """Texts a step."""
    micro_batch_size: int = Field(2, ge=1)
    """Texts whose graph is held at once, and texts measured together; has no effect beyond rounding."""
    rank: int | None = Field(16, ge=1)
    """Rank of fresh adapters on all linear layers, which alone are trained; null trains all weights, in fp32."""
    lora_alpha: float = Field(32, gt=0)
    """Numerator of the adapters' scale."""
    gradient_checkpointing: bool = Field(False, exclude_if=_is_off)
    """Hold the states between layers alone for gradients, at a third more time."""


class TunabilitySettings(RecipeSettings):
    """The fine-tune, and what it is on."""

    pairs: AnyPlace | None = None
    """New data: a file of JSON lines with ``prompt`` and ``completion``; with these alone is tunability an outcome in
    the pre-screen. By default the held-out solutions, of the runs' own task, so that what a run has learned of
    it already counts as well. Either way every other text is trained on, and the rest is measured."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds of the order of texts and of adapters, a fine-tune each."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of texts behind each 95 % interval."""
    seed: int = Field(0, ge=0)
    """Seed of the resampling, the same for all runs."""


@dataclass
class _State:
    student: ResidentStudent
    train: list[TokenSequence]
    measured: ProbeNLL


class Tunability(Workload):
    """Fine-tune every run, and the base, a little further, and measure it before and after; one task a run and seed.

    The texts are halved: one half is trained on, the other measured (``tuning.tune``). With adapters the student is
    held as the study says and only they, in fp32, are trained; otherwise it is held in fp32, with gradients and AdamW's
    two moments beside the weights and their copy: 20 bytes a weight. Weights are put back bit for bit.

    Args:
        settings: the fine-tune and its texts.
        runs: the runs, the base among them.
        base: folder of the base student.
        probe: probe file of the held-out solutions.
        renderer: what texts of a file are put to the student with.

    Raises:
        DataError: the file of ``pairs`` cannot be read.
    """

    name = "tunability"
    tables: ClassVar = {
        "tuned": schema(
            """One fine-tune of a run: summed NLL of each measured text before and after, nats, and its tokens, in the
            order of the texts.""",
            "run: text; seed, steps: int; before, after, text_tokens: doubles; first_loss, last_loss: float",
        ),
        "tunability": schema(
            """NLL of texts that are not tuned on, nats a token, `before` and `after` a fixed fine-tune of `steps` steps
            from a run's weights, the mean over `seeds`; `texts` is pairs (new data) or solutions (of the runs' own
            task); `gain` is before - after, `over_base` how far below that of the base, tuned
            in the same way, the run's NLL ends, `seed_sd` the standard deviation of `after` over seeds. Low and high
            are ends of 95 % intervals over texts, paired.""",
            "run, texts: text; steps, seeds: int; before, before_low, before_high, after, after_low, after_high, gain, "
            "gain_low, gain_high, over_base, over_base_low, over_base_high, seed_sd: float; n, tokens: int",
        ),
    }
    batch_settings: ClassVar = ("micro_batch_size",)

    def __init__(
        self,
        settings: TunabilitySettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        renderer: Renderer,
    ):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe
        self.renderer = renderer
        self.given = None if settings.pairs is None else read_pairs(settings.pairs)
        self.uses = {} if self.given is None else renderer_revision(type(renderer))

    def tasks(self) -> list[Task]:
        """A task a run and seed; all cost the same."""
        recipe = RecipeSettings.of(self.settings).model_dump(mode="json", exclude={"micro_batch_size"})
        texts = Probe.load(self.probe).key if self.given is None else [self.renderer.identity, self.given]
        return [
            Task(
                self.key(recipe, texts, seed, run.name, run.key),
                1.0,
                (run, seed),
                f"tuning of {run.name}, seed {seed}",
            )
            for run in self.runs
            for seed in self.settings.seeds
        ]

    def setup(self) -> _State:
        """Load the base student once, halve the texts and tokenise what is measured."""
        full = self.settings.rank is None
        student = ResidentStudent.load(self.base, self.runs, dtype=torch.float32 if full else None)
        if full:
            every = MixedWeights(student.model, [name for name, _ in student.model.named_parameters()])
            student = ResidentStudent(student.model, student.tokenizer, every)
        if self.given is None:
            probe = Probe.load(self.probe)
        else:
            probe = Probe("pairs", self.renderer.encode_many(self.given))
        train, measured = halves(probe)
        return _State(student, train.sequences, ProbeNLL(measured, self.settings.micro_batch_size, student.pad_id))

    def compute(self, state: _State, payload: tuple[Run, int]) -> dict[str, Rows]:
        """One fine-tune.

        Raises:
            DeltaError: a likelihood is not finite.
        """
        run, seed = payload
        settings = self.settings
        lora = None
        if settings.rank is not None:
            lora = LoraSettings(r=settings.rank, lora_alpha=settings.lora_alpha, target_modules="all-linear")
        model = state.student.model
        with state.student.weights.mixed(run.mixture()):
            before = state.measured.sums(model)
            with trainable(model, lora, seed) as tuned:
                with checkpointed(model) if settings.gradient_checkpointing else nullcontext():
                    losses = tune(
                        tuned,
                        state.train,
                        pad_id=state.student.pad_id,
                        steps=settings.steps,
                        lr=settings.lr,
                        batch_size=settings.batch_size,
                        micro_batch_size=settings.micro_batch_size,
                        seed=seed,
                    )
                after = state.measured.sums(tuned)
        if not (np.isfinite(before).all() and np.isfinite(after).all()):
            raise DeltaError(f"the NLL of {run.name} is not finite; it has diverged, leave it out.")
        row = {"run": run.name, "seed": seed, "steps": settings.steps, "first_loss": losses[0], "last_loss": losses[-1]}
        row |= {"before": before.tolist(), "after": after.tolist(), "text_tokens": state.measured.counts.tolist()}
        return {"tuned": [row]}

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Means over seeds, with intervals, beside the base's."""
        tuned: dict[str, list[dict[str, Any]]] = {}
        for row in tables["tuned"].to_pylist():
            tuned.setdefault(row["run"], []).append(row)
        base = _mean(tuned[BASE], "after") if BASE in tuned else None
        return {"tunability": [self._row(run, rows, base) for run, rows in tuned.items()]}

    def _row(self, run: str, rows: Sequence[dict[str, Any]], base: Array | None) -> dict[str, Any]:
        counts = np.asarray(rows[0]["text_tokens"])
        before, after = _mean(rows, "before"), _mean(rows, "after")
        columns = {"before": before, "after": after, "gain": before - after}
        if base is not None:
            columns["over_base"] = base - after
        sums = np.stack(list(columns.values()), -1)
        resampled = resampled_means(sums, counts, resamples=self.settings.bootstrap, seed=self.settings.seed)
        row: dict[str, Any] = {
            "run": run,
            "texts": OWN if self.given is None else NEW,
            "steps": rows[0]["steps"],
            "seeds": len(rows),
        }
        row |= {"n": len(counts), "tokens": int(counts.sum())}
        intervals = percentile_intervals(resampled, len(counts))
        for name, value, ends in zip(columns, token_means(sums, counts).tolist(), intervals, strict=True):
            row |= {name: value, f"{name}_low": ends.low, f"{name}_high": ends.high}
        after_each = [sum(each["after"]) / counts.sum() for each in rows]
        return row | {"seed_sd": float(np.std(after_each, ddof=1)) if len(after_each) > 1 else None}


def _mean(rows: Sequence[dict[str, Any]], column: str) -> Array:
    """Sums by text, the mean over seeds."""
    return np.mean([row[column] for row in rows], axis=0)
