"""What is known of a run once it has been planned or trained: one typed record, and what two runs have in common."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raygeo.errors import StoreError

Seeds = Literal["same", "order", "init", "both"]
"""Which seeds two runs differ in: none, that of the data order, that of the adapter initialisation, or both."""

Seed = int | None | tuple[int | None, ...]
"""A seed of a run, or those of its stages."""

EXECUTION = frozenset(
    {
        "micro_batch_size", "zero_stage", "offload", "workers", "cpus", "gpus", "eval_every", "snapshots", "log_every",
        "checkpoint_every", "restarts", "gradient_checkpointing", "padding_free", "torch_compile",
        "micro_batch_tokens", "attn_implementation", "sequence_parallel_size", "max_snapshot_gib", "gpu_type",
    }
)  # fmt: skip
"""Training settings that say how a run is computed and what is kept of it. They change its result by rounding alone, so
that runs which differ in nothing else are trained alike: a run that ran out of memory has a smaller micro-batch."""

FINISHED = "finished"
"""The status of a run whose weights are in the store."""
STOPPED = "stopped"
"""The status of a run that a scheduler stopped before its end."""


@dataclass(frozen=True)
class Condition:
    """How a run was trained. Runs that agree in ``loss`` and ``settings`` are of one configuration.

    ``loss`` is the loss with its options and ``settings`` everything else but the seeds and ``EXECUTION``, each as text
    in one canonical form. ``seed`` is that of the data order, ``init_seed`` that of the adapter; None where there is no
    adapter. Of a run in stages, both are those of its stages in order.
    """

    loss: str
    settings: str
    seed: Seed
    init_seed: Seed

    @property
    def configuration(self) -> tuple[str, str]:
        """The condition without its seeds."""
        return self.loss, self.settings

    @property
    def surroundings(self) -> tuple[str, Seed, Seed]:
        """The condition without its loss: runs that agree in it would be one if the loss did not matter."""
        return self.settings, self.seed, self.init_seed

    @property
    def seed_order(self) -> tuple[int, ...]:
        """Both seeds, so that conditions of one stage and of several can be sorted by them."""
        return tuple(
            seed or 0 for of in (self.seed, self.init_seed) for seed in (of if isinstance(of, tuple) else (of,))
        )

    def seeds(self, other: "Condition") -> Seeds:
        """Which seeds differ."""
        order, init = self.seed != other.seed, self.init_seed != other.init_seed
        return "both" if order and init else "order" if order else "init" if init else "same"


def configurations(conditions: Sequence[Condition]) -> list[list[int]]:
    """Indices of the runs of each configuration, in order of appearance."""
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for i, condition in enumerate(conditions):
        groups[condition.configuration].append(i)
    return list(groups.values())


@dataclass(frozen=True)
class RunRecord:
    """A row of table ``runs``.

    ``loss`` and ``training`` are the settings as plain data, None where the training is not known. ``stored`` is the
    dtype a complete model was found in, None where only a delta is kept. ``started`` and ``ended`` are when its
    training first began and when it came to its end, in ISO 8601, None where that is not known. ``delta`` says where
    the weights' change is. ``adapter_init`` is the fingerprint of the adapters that training started from, None where
    there were none.

    ``stages`` are those of a run that was trained in several or in rounds, None for all others: of each its loss,
    training, label, reference and, where it was in rounds, their number and how they were sampled. ``loss`` and
    ``training`` are then those of the last one. ``leg`` is the number of the stage, from 1, whose change alone this is,
    and ``leg_of`` names the run; ``stages`` end with that stage.
    """

    run: str
    key: str
    status: str
    loss: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    reason: str | None = None
    steps: int | None = None
    examples: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    started: str | None = None
    ended: str | None = None
    delta: str | None = None
    student: str | None = None
    mlflow_run_id: str | None = None
    stored: str | None = None
    model: str | None = None
    adapter_init: str | None = None
    stages: Sequence[Mapping[str, Any]] | None = None
    leg: int | None = None
    leg_of: str | None = None

    @property
    def label(self) -> str | None:
        """The type of its loss or, of a run in stages, those of all of them."""
        if self.stages is not None:
            labels = [str(stage["label"]) for stage in self.stages]
            return "+".join(labels) if self.leg is None else f"{labels[-1]} after {'+'.join(labels[:-1])}"
        return None if self.loss is None else str(self.loss["type"]).rpartition(":")[2]

    @property
    def lr(self) -> float | None:
        """Its learning rate; None where that is not known, and of a run in stages, each of which has its own."""
        return None if self.training is None or self.stages is not None else self.training["lr"]

    @property
    def condition(self) -> Condition | None:
        """How it was trained, None where that is not known."""
        if self.loss is None or self.training is None:
            return None
        if self.stages is None:
            settings, seed, init_seed = _optimisation(self.training)
            return Condition(_text(self.loss), _text(settings), seed, init_seed)
        trained = [_optimisation(stage["training"]) for stage in self.stages]
        rest = [
            {name: value for name, value in stage.items() if name not in ("loss", "training", "label")}
            for stage in self.stages
        ]
        plain = {"stages": [settings for settings, _, _ in trained], "besides": rest, "leg": self.leg}
        return Condition(
            _text([stage["loss"] for stage in self.stages]),
            _text(plain),
            tuple(seed for _, seed, _ in trained),
            tuple(init_seed for _, _, init_seed in trained),
        )

    def row(self) -> dict[str, Any]:
        """The record as a row of table ``runs``."""
        row = asdict(self)
        loss, training = row.pop("loss"), row.pop("training")
        params = {"loss": loss, "training": training} | {name: row.pop(name) for name in _PARAMS}
        if loss is not None and training is not None:
            row |= {"loss": self.label} | {name: training[name] for name in ("lr", "seed", "init_seed")}
        return row | {"params": json.dumps({name: value for name, value in params.items() if value is not None})}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "RunRecord":
        """The record that a row of table ``runs`` holds.

        Raises:
            StoreError: the row is not one that raygeo has written.
        """
        try:
            params = json.loads(row["params"] or "{}")
        except (ValueError, RecursionError):
            params = None
        if not isinstance(params, dict) or not all(isinstance(row[name], str) for name in ("run", "key", "status")):
            raise StoreError(_damaged(row, "its key, status or settings"))
        loss, training, stages = params.get("loss"), params.get("training"), params.get("stages")
        if not all(part is None or isinstance(part, dict) for part in (loss, training)) or not _are_stages(stages):
            raise StoreError(_damaged(row, "its loss or training"))
        if loss is not None and not isinstance(loss.get("type"), str):
            raise StoreError(_damaged(row, "the type of its loss"))
        kept: dict[str, Any] = {name: row[name] for name in _COLUMNS if name in row}
        kept |= {name: params.get(name) for name in ("loss", "training", *_PARAMS)}
        return cls(**kept)


def _are_stages(stages: Any) -> bool:
    """Whether these are the stages of a record, or None."""
    if stages is None:
        return True
    return isinstance(stages, list) and all(
        isinstance(stage, dict) and isinstance(stage.get("loss"), dict) and isinstance(stage.get("training"), dict)
        and isinstance(stage.get("label"), str)
        for stage in stages
    )  # fmt: skip


def _damaged(row: Mapping[str, Any], what: str) -> str:
    return (
        f"the table runs is damaged: of the run {str(row['run'])[:80]!r} it does not say {what}. Run the study again, "
        "which makes the table anew."
    )


_COLUMNS = (
    "run", "key", "status", "reason", "steps", "examples", "tokens", "seconds", "delta", "student", "mlflow_run_id",
)  # fmt: skip
_PARAMS = ("started", "ended", "stored", "model", "adapter_init", "stages", "leg", "leg_of")


def _text(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True)


def _optimisation(training: Mapping[str, Any]) -> tuple[dict[str, Any], int, int | None]:
    """The settings of a training without its seeds and ``EXECUTION``, and the seeds."""
    settings = {name: value for name, value in training.items() if name not in EXECUTION}
    seed, init_seed = settings.pop("seed"), settings.pop("init_seed")
    return settings, seed, None if settings["lora"] is None else init_seed
