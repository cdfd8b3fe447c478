"""What the units of a stage need, and what analyses know of a study before it has begun."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from raygeo.footprint.devices import Device, Dtype
from raygeo.footprint.model import DryModel

Terms = Mapping[str, int]
"""Bytes by what they hold."""
_BANDWIDTH = 0.6


@dataclass(frozen=True)
class Work:
    """``flops`` operations in ``dtype``, ``traffic`` bytes read once by decoding, ``launches`` blocks of its steps."""

    flops: float = 0.0
    dtype: Dtype = "fp32"
    traffic: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.dtype, self.traffic + other.traffic, self.launches + other.launches)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.dtype, self.traffic * times, self.launches * times)

    def seconds(self, device: Device) -> float:
        """On one device: operations, and for decoding the slower of memory and host."""
        decoding = max(self.traffic / (_BANDWIDTH * device.bandwidth), self.launches * device.launch)
        return self.flops / (device.mfu * device.flops[self.dtype]) + decoding


@dataclass(frozen=True)
class Need:
    """What one kind of unit of a stage needs.

    Args:
        what: the stage, or the analysis; with what distinguishes it there.
        units: how many.
        work: of all of them together.
        device: bytes on the device of each of its processes, by what they hold.
        host: bytes of the machine's memory a process takes besides.
        disk: bytes that all of them leave in the store.
        processes: how many devices one unit takes.
        on: whether it runs on devices of training, of actors, or on actors' CPUs whatever they have.
        rate: the workload whose measured seconds a unit stand for it.
        remedies: settings, as ``a.b=c``, that make it smaller, those that cost least first.
        unknown: why memory and work are not known.
    """

    what: str
    units: int
    work: Work = Work()
    device: Terms = field(default_factory=dict)
    host: Terms = field(default_factory=dict)
    disk: Terms = field(default_factory=dict)
    processes: int = 1
    on: Literal["training", "actors", "cpu"] = "actors"
    rate: str = ""
    remedies: tuple[str, ...] = ()
    unknown: str = ""


@dataclass(frozen=True)
class Texts:
    """Some texts: how many, their mean length and the longest, in tokens."""

    count: int
    mean: float
    longest: int

    def first(self, most: int) -> Texts:
        """At most so many of them."""
        return Texts(min(self.count, most), self.mean, self.longest)


@dataclass(frozen=True)
class Scale:
    """A study as analyses see it before it has begun.

    ``model`` is the student in the dtype that analyses load it in, ``student`` makes it in another, or with
    ``checkpointing``. ``default_pairs`` are those of runs that are compared where not all are asked for. ``trained``
    counts runs, ``losses`` distinct losses; ``rank`` is that of LoRA deltas, None for full ones; ``probes`` are the
    texts of each likelihood probe, ``curvature`` those of the Hessian, ``rollouts`` those of training; ``problems`` are
    held-out problems; ``snapshots`` the deltas kept of a run; ``rows_per_example`` the most rows that a loss takes at
    once.
    """

    model: DryModel
    trained: int
    losses: int
    rank: int | None
    probes: Mapping[str, Texts]
    curvature: Texts
    rollouts: Texts
    problems: Texts
    snapshots: int
    student: Callable[..., DryModel]
    default_pairs: int
    rows_per_example: int = 1

    def exactly(self) -> Scale:
        """With the student in fp32, as what is differentiated is whatever the study says."""
        return replace(self, model=self.student(torch.float32))

    @property
    def dtype(self) -> Dtype:
        """Of the model."""
        return "bf16" if self.model.dtype.itemsize == 2 else "fp32"

    @property
    def runs(self) -> int:
        """Runs and the base."""
        return self.trained + 1

    @property
    def pairs(self) -> int:
        """Pairs of runs, the base included."""
        return self.runs * (self.runs - 1) // 2

    def resident(self) -> dict[str, int]:
        """A student whose weights are set to those of runs."""
        size = self.model.dtype.itemsize
        largest = max(map(math.prod, self.model.shapes.values()))
        return {
            "weights": self.model.weights,
            "base copy of what deltas touch": self.model.touched * size,
            "mixing one matrix": 2 * largest * 4,
        }

    def mixing(self, mixtures: float) -> Work:
        """Setting the weights to so many mixtures of two deltas."""
        per = 2 * (self.rank or 1) * self.model.touched
        return Work(2.0 * per * mixtures, self.dtype)

    def scoring(self, texts: Texts, passes: float) -> Work:
        """So many passes over texts without gradients."""
        return Work(self.model.scoring(1, _length(texts)).flops * texts.count * passes, self.dtype)

    def gradients(self, texts: Texts, passes: float) -> Work:
        """So many gradients over texts."""
        return Work(self.model.gradient(1, _length(texts)).flops * texts.count * passes, self.dtype)

    def answers(self, problems: Texts, new_tokens: int, batch_size: int, times: float) -> Work:
        """Answering problems so often, if every answer is as long as it may be."""
        return decoding_work(self.model, problems, new_tokens, batch_size) * times

    @property
    def solutions(self) -> Texts:
        """The probe of held-out solutions."""
        return self.probes["solutions"]

    @property
    def likelihood(self) -> Texts:
        """The texts of all likelihood probes."""
        every = list(self.probes.values())
        count = sum(texts.count for texts in every)
        tokens = sum(texts.count * texts.mean for texts in every)
        return Texts(count, tokens / max(1, count), max(texts.longest for texts in every))

    def chosen_pairs(self, pairs: Any) -> int:
        """How many pairs a setting named ``pairs`` stands for."""
        if not isinstance(pairs, str):
            return len(pairs)
        known = {"default": self.default_pairs, "base": self.trained, "reference": 2 * self.trained - 1}
        return known.get(pairs, self.pairs)

    def along(
        self, name: str, units: int, points: float, texts: Texts, settings: Any, *, answered: float = 0.0
    ) -> Need:
        """So many units that each measure the likelihood of texts at so many mixtures, ``settings.batch_size`` at once.

        Where ``settings`` are ``between.AccuracySettings``, problems are asked at ``answered`` mixtures of a unit.
        """
        model = self.model
        work = self.scoring(texts, units * points) + self.mixing(units * points)
        rows = min(settings.batch_size, texts.count)
        most = model.scoring(rows, texts.longest).peak
        remedies = [f"geometry.{name}.batch_size={smaller}" for smaller in halves(rows)]
        if answered and settings.accuracy_problems:
            problems = self.problems.first(settings.accuracy_problems)
            rows, tokens = min(settings.generation_batch_size, problems.count), settings.answer_tokens
            work += self.answers(problems, tokens, rows, units * answered)
            held = decoding_peak(model, rows, problems.longest, tokens)
            if held > most:
                most = held
                remedies = [f"geometry.{name}.generation_batch_size={smaller}" for smaller in halves(rows)]
        device = self.resident() | {"a batch": most}
        return Need(f"geometry.{name}", units, work, device, rate=rate_name(name), remedies=(*remedies, *LIGHTER))


DIVIDED = ("student.device_map=auto", "actors.gpus=2", "actors.gpus=4", "actors.gpus=8")
"""What divides a student over the GPUs of an actor wherever analyses load it."""
LIGHTER = ("student.dtype=bf16", *DIVIDED)
"""What makes it smaller there besides; not what is differentiated, which is in fp32."""


def rate_name(analysis: str) -> str:
    """The name of the workload of an analysis that has one."""
    return analysis.replace("_", "-")


def halves(size: int) -> list[int]:
    """Half of it, half of that, down to one."""
    return [size >> k for k in range(1, size.bit_length())]


def decoding_peak(model: DryModel, rows: int, prompt: int, new_tokens: int) -> int:
    """Bytes held while ``rows`` prompts are continued to the end."""
    return max(model.prefill(rows, prompt).peak, model.decoding(rows, prompt + new_tokens - 1).peak)


def _length(texts: Texts) -> int:
    return max(2, round(texts.mean))


def decoding_work(model: DryModel, prompts: Texts, new_tokens: int, batch_size: int, samples: int = 1) -> Work:
    """Continuing prompts by as many tokens as allowed, ``batch_size`` rows at a time.

    A step reads the weights and half of the cache it ends with.
    """
    rows = prompts.count * samples
    if not rows or not new_tokens:
        return Work()
    dtype: Dtype = "bf16" if model.dtype.itemsize == 2 else "fp32"
    batches = -(-rows // batch_size)
    whole = min(rows, batch_size)
    length = round(prompts.mean) + new_tokens // 2
    step = model.decoding(whole, max(1, length))
    read = model.prefill(1, max(1, round(prompts.mean))).flops * rows / samples
    return Work(
        read + step.flops * new_tokens * rows / whole,
        dtype,
        batches * new_tokens * float(model.weights + step.kept),
        batches * new_tokens * float(model.layers),
    )
