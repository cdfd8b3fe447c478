"""What every stage of a study needs: the formulas of the stages themselves; analyses bring their own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from raygeo.analyses.pairs import FEW, REPRESENTATIVES
from raygeo.analyses.registry import analyses
from raygeo.data.probes import HELDOUT_SEQUENCES
from raygeo.data.sampling import DecodingSettings
from raygeo.data.teacher import TeacherTop, row_bytes
from raygeo.footprint.devices import Dtype
from raygeo.footprint.model import DryModel
from raygeo.footprint.need import LIGHTER, Need, Scale, Texts, Work, decoding_peak, decoding_work, halves, rate_name
from raygeo.generation.choice import LOCAL
from raygeo.losses.base import FROM_BASE, Loss
from raygeo.models.lora import LoraSettings
from raygeo.pipeline.budget.facts import Facts
from raygeo.pipeline.config import Study
from raygeo.pipeline.plan import PlannedStage
from raygeo.settings import Settings
from raygeo.training.engine import BUCKET
from raygeo.training.order import step_count
from raygeo.training.settings import RunSpec, TrainingSettings

LIVE = 10**9
"""Most parameters that ZeRO-3 keeps gathered, by DeepSpeed's default."""
STAGES = ("student", "rollouts", "reference", "train", "evaluate", "geometry")
"""Those that need something."""
DELTAS, SNAPSHOTS, CHECKPOINTS = "deltas", "snapshots", "checkpoints of a run in progress"
"""What runs leave in the store, and the two checkpoints that one has there while it writes the second."""
LIKELIEST = "a teacher's likeliest tokens"
"""What is kept of a teacher's law, with rollouts and as training reads it."""
COPIES = 4
"""Tables that hold what comes with rollouts: as they were sampled, as they were read, chosen, and published."""
STARTS = "students where a stage begins"
"""What lies in the store while runs in stages or rounds are trained."""
ROW = 1024
"""Bytes that a row takes of the process that splits rollouts: verdicts, keys and lengths, but no texts."""


class Shapes:
    """The student's shapes in each form that the study loads it in, built when first asked for."""

    def __init__(self, facts: Facts):
        self._config = facts.config
        self._known: dict[Any, DryModel] = {}

    def of(self, dtype: torch.dtype, lora: LoraSettings | None = None, **form: Any) -> DryModel:
        """The student as ``DryModel`` makes it.

        Raises:
            StudentError: transformers cannot build it.
        """
        key = dtype, lora, tuple(sorted(form.items()))
        if key not in self._known:
            self._known[key] = DryModel(self._config, dtype, lora, **form)
        return self._known[key]


def stage_needs(
    study: Study,
    facts: Facts,
    shapes: Shapes,
    gpu: bool,
    only: str | None = None,
    stages: Collection[str] = STAGES,
) -> list[Need]:
    """The needs of ``stages`` in order, or of ``only`` one stage or analysis; ``gpu`` says whether there are GPUs."""
    makers: dict[str, Callable[[], list[Need]]] = {
        "student": lambda: [_student(study, shapes)],
        "rollouts": lambda: _rollouts(study, facts, shapes),
        "reference": lambda: [*_reference(study, facts, shapes), *_teacher(study, facts, shapes)],
        "train": lambda: [*_training(study, facts, shapes, gpu), *_between(study, facts, shapes)],
        "evaluate": lambda: _evaluation(study, facts, shapes),
        **{
            f"geometry.{name}": partial(_analysis, study, facts, shapes, name, settings)
            for name, settings in study.geometry.asked().items()
        },
    }
    asked = {stage: make for stage, make in makers.items() if stage.partition(".")[0] in stages}
    return [need for stage, make in asked.items() if only in (None, stage) for need in make()]


def analysis_dtype(study: Study) -> torch.dtype:
    """What everything but training loads the student in."""
    return torch.bfloat16 if study.student.dtype == "bf16" else torch.float32


def _student(study: Study, shapes: Shapes) -> Need:
    model = shapes.of(torch.float32)
    made = study.student.model.startswith("builtin:")
    held = {"weights while it is checked, fp32": model.weights}
    return Need("student", 1, host=held, disk={"weights": model.weights} if made else {}, on="cpu")


def _rollouts(study: Study, facts: Facts, shapes: Shapes) -> list[Need]:
    rows, tokens = facts.rollouts.count, facts.rollouts.count * facts.rollouts.mean
    disk = {"tokens": int(4 * tokens), "texts and verdicts, compressed": int(2 * tokens)}
    host = {"rows without their texts": ROW * rows}
    sample = study.rollouts.sample
    if sample is None:
        return [Need("rollouts", rows, host=host, disk=disk, on="cpu")]
    decoding = sample.decoding
    if decoding.top_logprobs:
        disk[LIKELIEST] = int(COPIES * row_bytes(decoding.top_logprobs) * tokens * facts.completion)
    prompts = Texts(rows // decoding.samples, facts.rollouts.mean - decoding.max_new_tokens, facts.rollouts.longest)
    prompt = max(1, facts.rollouts.longest - decoding.max_new_tokens)
    if sample.engine.type != LOCAL.type:
        unknown = f"what the engine {sample.engine.type} holds is not looked at"
        return [Need("rollouts", rows, host=host, disk=disk, rate="rollouts", unknown=unknown)]
    if sample.teacher not in ("builtin", "student", study.student.model):
        unknown = f"the shapes of the teacher {sample.teacher!r} are not looked at"
        return [Need("rollouts", rows, host=host, disk=disk, rate="rollouts", unknown=unknown)]
    model = shapes.of(analysis_dtype(study))
    held = min(decoding.batch_size, rows)
    work = decoding_work(model, prompts, decoding.max_new_tokens, decoding.batch_size, decoding.samples)
    device = {"weights": model.weights, "cache and logits": decoding_peak(model, held, prompt, decoding.max_new_tokens)}
    remedies = tuple(f"rollouts.sample.decoding.batch_size={less}" for less in halves(held))
    return [Need("rollouts", prompts.count, work, device, host, disk, rate="rollouts", remedies=(*remedies, *LIGHTER))]


def _reference(study: Study, facts: Facts, shapes: Shapes) -> list[Need]:
    specs = study.plan.referring()
    needs = {need for spec in specs for need in spec.needs}
    if not needs & FROM_BASE:
        return []
    return [_passes(study, facts, shapes, specs, "reference")]


def _passes(study: Study, facts: Facts, shapes: Shapes, specs: Sequence[RunSpec], what: str) -> Need:
    """What losses need of the base, or of ``specs`` each of a student of its own."""
    needs = {need for spec in specs for need in spec.needs}
    students = 1 if what == "reference" else len(specs)
    bf16 = any(spec.training.precision == "bf16" for spec in specs if spec.needs & FROM_BASE)
    model = shapes.of(torch.bfloat16 if bf16 else torch.float32)
    texts = facts.train
    rows = min(study.reference.batch_size, texts.count)
    passes = ("reference" in needs) + ("reference_logits" in needs) + ("mismatched" in needs)
    passes *= students
    completions = texts.count * texts.mean * facts.completion
    disk = {"log-probabilities": int(8 * completions) * students}
    if "reference_logits" in needs:
        disk["final hidden states"] = int(completions * model.width * model.dtype.itemsize) * students
    dtype: Dtype = "bf16" if bf16 else "fp32"
    work = Work(model.scoring(1, round(texts.mean)).flops * texts.count * passes, dtype)
    device = {"weights": model.weights, "a batch": model.scoring(rows, texts.longest).peak}
    remedies = tuple(f"reference.batch_size={less}" for less in halves(rows))
    return Need(what, passes, work, device, disk=disk, rate="reference log-probabilities", remedies=remedies)


def _teacher(study: Study, facts: Facts, shapes: Shapes) -> list[Need]:
    teacher, texts, sample = study.teacher, facts.train, study.rollouts.sample
    if not any("teacher" in spec.needs for spec in study.plan.points()):
        return []
    completions = texts.count * texts.mean * facts.completion
    if teacher is None:
        kept = 0 if sample is None else sample.decoding.top_logprobs  # of files it is not known how many they hold
        return [Need("teacher", 1, disk={LIKELIEST: int(row_bytes(kept) * completions)}, on="cpu")] if kept else []
    disk = {LIKELIEST: int(row_bytes(teacher.top_k) * completions)}
    if teacher.model not in ("builtin", "student", study.student.model):
        unknown = f"the shapes of the teacher {teacher.model!r} are not looked at"
        return [Need("teacher", 1, disk=disk, rate=TeacherTop.name, unknown=unknown)]
    model = shapes.of(torch.bfloat16 if teacher.dtype == "bf16" else torch.float32)
    rows = min(study.reference.batch_size, texts.count)
    work = Work(model.scoring(1, round(texts.mean)).flops * texts.count, teacher.dtype)
    device = {"weights": model.weights, "a batch": model.scoring(rows, texts.longest).peak}
    remedies = tuple(f"reference.batch_size={less}" for less in halves(rows))
    return [Need("teacher", 1, work, device, disk=disk, rate=TeacherTop.name, remedies=remedies)]


# -- training -----------------------------------------------------------------------------------------------------


def _training(study: Study, facts: Facts, shapes: Shapes, gpu: bool) -> list[Need]:
    groups: dict[Any, list[RunSpec]] = {}
    for spec in study.plan.points():
        if spec.name in facts.settled:
            continue
        kept = {"lr", "seed", "init_seed", "weight_decay", "betas", "adam_epsilon", "warmup_ratio", "final_lr"}
        groups.setdefault((_kind(spec.loss), spec.training.model_dump_json(exclude=kept)), []).append(spec)
    return [_runs(study, facts, shapes, specs, gpu) for specs in groups.values()]


def _between(study: Study, facts: Facts, shapes: Shapes) -> list[Need]:
    """What runs in stages or rounds need besides their trainings: the student that each later one starts from, rollouts
    of rounds, what losses need of those students, and the sums of what was changed.
    """
    lacking = {spec.name for spec in study.plan.points()} - facts.settled
    chains = [run for run in study.plan.trials() if run.is_chain]
    chains = [run for run in chains if any(spec.name in lacking for spec in run.trainings)]
    if not chains:
        return []
    model = shapes.of(torch.float32)
    later = {spec.name for run in chains for spec in run.trainings[1:]}
    deltas = [4 * training_model(shapes, run.spec.training).trainable for run in chains]
    several = [(len(run.trainings), delta) for run, delta in zip(chains, deltas, strict=True) if len(run.trainings) > 1]
    needs = [
        Need(
            "train, stages joined",
            len(later),
            host={"weights of a student, fp32": model.weights},
            disk={
                DELTAS: sum(delta for _, delta in several),
                SNAPSHOTS: sum((count - 1) * delta for count, delta in several),
                STARTS: model.weights * len(several),
            },
            on="cpu",
        )
    ]
    needs += [
        _sampled(study, facts, shapes, stage) for run in chains for stage in run.stages if stage.rounds is not None
    ]
    compared = [
        spec
        for run in chains
        for number, stage in enumerate(run.stages)
        for spec in stage.specs
        if spec.needs & FROM_BASE and (stage.rounds is not None or (number > 0 and spec.reference == "start"))
    ]
    if compared:
        needs.append(_passes(study, facts, shapes, compared, "train, reference where stages begin"))
    return needs


def _sampled(study: Study, facts: Facts, shapes: Shapes, stage: PlannedStage) -> Need:
    """The rollouts that all rounds of a stage draw."""
    sample, asked, rounds = study.rollouts.sample, facts.prompts, stage.rounds or 0
    decoding = stage.sampling.decoding(DecodingSettings() if sample is None else sample.decoding, 1)
    samples = sample.decoding.samples if sample is not None else 1
    prompts = stage.sampling.prompts or max(1, facts.train.count // samples)
    texts = Texts(prompts, asked.mean, asked.longest)
    what, units = f"train, rollouts of {stage.spec.name}", rounds * -(-prompts // decoding.prompts_per_task)
    disk = {"rollouts": int(6 * rounds * prompts * decoding.samples * (asked.mean + decoding.max_new_tokens))}
    engine = study.evaluation.engine.type
    if engine != LOCAL.type:
        return Need(what, units, disk=disk, rate="rollouts", unknown=f"what the engine {engine} holds is not looked at")
    model = shapes.of(analysis_dtype(study))
    rows = min(decoding.batch_size, prompts * decoding.samples)
    work = decoding_work(model, texts, decoding.max_new_tokens, decoding.batch_size, decoding.samples) * rounds
    peak = decoding_peak(model, rows, texts.longest, decoding.max_new_tokens)
    return Need(what, units, work, {"weights": model.weights, "cache and logits": peak}, disk=disk, rate="rollouts")


def _kind(loss: Loss) -> Any:
    """What of a loss decides how much a step holds."""
    whole_logits = type(loss).token_terms is not Loss.token_terms
    return loss.unit == "pair", loss if whole_logits else None, loss.embedding_mix > 0, loss.kept_share, loss.needs


def _runs(study: Study, facts: Facts, shapes: Shapes, specs: Sequence[RunSpec], gpu: bool) -> Need:
    """Runs that differ in nothing that memory or time depends on."""
    spec, training = specs[0], specs[0].training
    model = training_model(shapes, training)
    examples = _examples(spec.loss, facts)
    steps = step_count(examples, training.batch_size, training.steps, training.epochs)
    flops = model.training(spec.loss, 1, max(2, round(facts.train.mean)), accumulating=False).flops
    if spec.loss.kept_share < 1:  # all rows are read, some are learned from
        flops = int(spec.loss.kept_share * flops) + model.scoring(1, max(2, round(facts.train.mean))).flops
    scored = Texts(min(HELDOUT_SEQUENCES, facts.prompts.count), facts.train.mean, facts.train.longest)
    watched = 1 + (steps // training.eval_every if training.eval_every else 0)
    every = flops * steps * training.batch_size
    every += model.scoring(1, max(2, round(scored.mean))).flops * scored.count * watched
    delta = 4 * model.trainable
    snapshots = min(training.kept_snapshots(delta), steps)
    names = [run.name for run in specs]
    shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    return Need(
        f"train {shown}",
        len(specs),
        Work(every * len(specs), "bf16" if training.precision == "bf16" else "fp32"),
        training_memory(model, spec.loss, training, max(facts.longest(run.loss) for run in specs), gpu),
        {"weights while loading": model.weights} if gpu else {},
        {
            DELTAS: delta * len(specs),
            SNAPSHOTS: delta * snapshots * len(specs),
            CHECKPOINTS: 2 * checkpoint_bytes(model.trainable, training),
        },
        training.workers,
        "training",
        "training",
        _training_remedies(study, spec, training),
    )


def checkpoint_bytes(trained: int, training: TrainingSettings) -> int:
    """What a run resumes from: weights, of which so many are ``trained``, AdamW's moments and, under ZeRO or in bf16,
    masters in fp32.
    """
    half = training.precision == "bf16" and training.lora is None
    return trained * ((2 if half else 4) + 8 + (4 if half or training.zero_stage else 0))


def training_model(shapes: Shapes, training: TrainingSettings) -> DryModel:
    """The student as a run with these settings computes with it."""
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    return shapes.of(
        dtype, training.lora, checkpointing=training.gradient_checkpointing, attention=training.attn_implementation
    )


def training_memory(model: DryModel, loss: Loss, training: TrainingSettings, longest: int, gpu: bool) -> dict[str, int]:
    """Bytes on the device of one worker at the worst moment of a step, by what holds them.

    DeepSpeed 0.19: ZeRO 1 and 2 keep an fp32 copy of what is trained, in fp32 too, and a bucket of as many gradients,
    at most ``BUCKET``, two where communication overlaps; stage 3 gathers at most ``LIVE`` parameters at a time. In bf16
    stage 1 stands in for 0, but for adapters, which are in fp32. Workers that share rows hold, in attention too, what
    rows of their part of the tokens would take.
    """
    trained, adapters = model.trainable, training.lora is not None
    size = 4 if adapters else model.dtype.itemsize
    stage = max(training.zero_stage, int(training.precision == "bf16" and not adapters))
    shards, sharing = training.workers, training.sequence_parallel_size
    examples = math.ceil(training.batch_size * sharing / shards)
    micro = min(training.micro_batch_size, examples)
    if training.micro_batch_tokens is not None:
        micro = min(micro, max(1, training.micro_batch_tokens // (longest * (2 if loss.unit == "pair" else 1))))
    one = model.training(loss, micro, math.ceil(longest / sharing), accumulating=examples > micro)
    gradients = trained * size
    memory = {"weights": model.weights, "gradients": gradients}
    masters, moments = (4 * trained if stage else 0), 8 * trained
    if stage:
        masters, moments = masters // shards, moments // shards
        memory["gradients in fp32 for the step"] = 4 * trained // shards
        memory["reduction buckets"] = min(trained, BUCKET) * size * (2 if gpu else 1)
    if stage >= 2:
        memory["gradients"] = gradients // shards
    if stage == 3:
        memory["weights"] = model.weights // shards
        memory["weights gathered"] = min(model.parameters - model.parameters // shards, LIVE) * model.dtype.itemsize
    if not (training.offload and stage):
        memory["optimizer: master copies"] = masters
        memory["optimizer: moments"] = moments
    elif stage == 3:
        memory["weights"] = 0 if gpu else memory["weights"]
    memory["activations"] = one.kept
    memory["pass besides"] = max(0, one.peak - one.kept - gradients)
    return {name: held for name, held in memory.items() if held}


def _examples(loss: Loss, facts: Facts) -> int:
    """How many examples a loss may find, as far as the number of rows tells."""
    return max(1, facts.train.count // 2 if loss.unit == "pair" else facts.train.count)


def _training_remedies(study: Study, spec: RunSpec, training: TrainingSettings) -> tuple[str, ...]:
    entry = next((run.entry for run in study.plan.trials() if run.name == spec.name), None)

    def at(name: str, value: Any) -> str:
        own = entry is not None and name in study.runs[entry].model_fields_set
        return f"runs.{entry}.{name}={value}" if own else f"training.{name}={value}"

    remedies = []
    if training.precision == "fp32":
        remedies.append(at("precision", "bf16"))
    remedies += [at("micro_batch_size", less) for less in halves(training.micro_batch_size)]
    remedies.append(at("gradient_checkpointing", "true"))
    if training.lora is None:
        remedies.append(at("lora", "{r: 32, lora_alpha: 64}"))
    if training.zero_stage < 3:
        for workers in (2, 4, 8, 16):
            remedies += [at("zero_stage", 3), at("workers", workers)]
    remedies.append(at("offload", "true"))
    return tuple(remedies)


# -- after training -----------------------------------------------------------------------------------------------


def _evaluation(study: Study, facts: Facts, shapes: Shapes) -> list[Need]:
    answers, monitor = study.evaluation.answers, study.evaluation.monitor
    scale = scale_of(study, facts, shapes)
    samples, engine = answers.samples, study.evaluation.engine.type
    needs = []
    for name, asked in facts.benchmarks.items():
        if not asked.count:
            continue
        units = scale.runs * -(-asked.count // answers.problems_per_task)
        disk = {"answers": int(4 * asked.count * samples * answers.max_new_tokens * scale.runs)}
        if engine != LOCAL.type:
            unknown = f"what the engine {engine} holds is not looked at"
            needs.append(Need(f"evaluate {name}", units, disk=disk, rate="answers", unknown=unknown))
            continue
        rows = min(answers.batch_size, asked.count * samples)
        work = decoding_work(scale.model, asked, answers.max_new_tokens, answers.batch_size, samples) * scale.runs
        peak = decoding_peak(scale.model, rows, asked.longest, answers.max_new_tokens)
        remedies = tuple(f"evaluation.answers.batch_size={less}" for less in halves(rows))
        needs.append(
            Need(
                f"evaluate {name}",
                units,
                work,
                scale.resident() | {"cache and logits": peak},
                disk=disk,
                rate="answers",
                remedies=(*remedies, *LIGHTER),
            )
        )
    if monitor is not None and engine == LOCAL.type:
        needs.append(_monitor(study, facts, scale, monitor.problems))
    return needs


def _monitor(study: Study, facts: Facts, scale: Scale, most: int) -> Need:
    """Accuracy at kept steps, on training problems and on few of each benchmark."""
    answers, points = study.evaluation.answers, scale.trained * (scale.snapshots + 1) + 1
    asked = [facts.prompts, *facts.benchmarks.values()]
    sets = [texts.first(most) for texts in asked if texts.count]
    work = sum(
        (
            decoding_work(scale.model, texts, answers.max_new_tokens, answers.batch_size, answers.samples)
            for texts in sets
        ),
        Work(),
    )
    longest = max((texts.longest for texts in sets), default=1)
    rows = min(answers.batch_size, most * answers.samples)
    peak = decoding_peak(scale.model, rows, longest, answers.max_new_tokens)
    units = points * sum(-(-texts.count // answers.problems_per_task) for texts in sets)
    disk = {"answers": int(4 * sum(texts.count for texts in sets) * answers.samples * answers.max_new_tokens * points)}
    held = scale.resident() | {"cache and logits": peak}
    remedies = tuple(f"evaluation.answers.batch_size={less}" for less in halves(rows))
    return Need(
        "evaluate on the way", units, work * points, held, disk=disk, rate="answers", remedies=(*remedies, *LIGHTER)
    )


def _analysis(study: Study, facts: Facts, shapes: Shapes, name: str, settings: Settings) -> list[Need]:
    hook, what = analyses(study.geometry.own)[name].cost, f"geometry.{name}"
    if hook is None:
        return [Need(what, 1, on="cpu", rate=rate_name(name), unknown="the analysis does not say what it needs")]
    try:
        needs = hook(settings, scale_of(study, facts, shapes))
    except Exception as error:  # of whatever family or analysis: the plan says so and goes on
        first = (str(error).strip() or type(error).__name__).partition("\n")[0]
        return [Need(what, 1, rate=rate_name(name), unknown=f"its shapes cannot be followed ({first})")]
    engine = study.evaluation.engine.type
    if engine == LOCAL.type or not getattr(settings, "accuracy_problems", 0):
        return needs
    unknown = f"what the engine {engine}, which answers, holds is not looked at"
    return [replace(need, work=Work(), device={}, unknown=unknown) for need in needs]


def scale_of(study: Study, facts: Facts, shapes: Shapes) -> Scale:
    """The study as analyses see it."""
    specs = study.plan.points()
    trained = sum(len(run.shown) for run in study.plan.trials()) or len(specs)
    losses = {spec.loss for spec in specs}
    loras = {spec.training.lora for spec in specs}
    low_rank = None not in loras
    lora = max(loras, key=lambda each: each.r) if low_rank else None  # type: ignore[union-attr]
    model = shapes.of(analysis_dtype(study), lora=lora, merged=True)
    held = Texts(max(1, min(study.probes.sequences, facts.prompts.count)), facts.rollouts.mean, facts.rollouts.longest)
    answers = Texts(held.count, facts.prompts.mean + 8, facts.prompts.longest + 8)
    return Scale(
        model=model,
        trained=trained,
        losses=len(losses),
        rank=None if lora is None else lora.r,
        probes={"solutions": held, "answer": answers},
        curvature=held.first(study.probes.curvature_sequences),
        rollouts=facts.train,
        problems=facts.prompts,
        snapshots=max(spec.training.kept_snapshots(4 * model.trainable) for spec in specs),
        student=partial(shapes.of, lora=lora, merged=True),
        default_pairs=_default_pairs(specs, trained),
        rows_per_example=max(2 if loss.unit == "pair" else 1 for loss in losses),
    )


def _default_pairs(specs: Sequence[RunSpec], trained: int) -> int:
    """At most so many pairs are compared by default: every two of few runs; of more, each with the base and with the
    reference, runs of one configuration, and one run of each configuration with each other.
    """
    every = trained * (trained + 1) // 2
    if trained <= FEW:
        return every
    groups = Counter((spec.loss, spec.training.model_dump_json(exclude={"seed", "init_seed"})) for spec in specs)
    heads = min(len(groups), REPRESENTATIVES)
    alike = sum(size * (size - 1) // 2 for size in groups.values())
    return min(every, 2 * trained - 1 + alike + heads * (heads - 1) // 2)
