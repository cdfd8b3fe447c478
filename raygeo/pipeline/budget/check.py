"""What can never fit is told before it is begun."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import prod

from raygeo.errors import ClusterError, StudentError
from raygeo.footprint.devices import GIB
from raygeo.footprint.need import Need
from raygeo.models.loading import model_shape
from raygeo.pipeline.budget.cluster import Cluster
from raygeo.pipeline.budget.facts import Facts
from raygeo.pipeline.budget.plan import Line, changed_study, fits_with, gib, make_plan, remedy, stage_of
from raygeo.pipeline.budget.show import advice
from raygeo.pipeline.budget.stages import CHECKPOINTS, DELTAS, SNAPSHOTS, STAGES, STARTS, Shapes, stage_needs
from raygeo.pipeline.config import Study

ESCAPE = "If you know better, raygeo run --no-memory-check begins all the same."
SHORTEST = {
    "evaluate": ("evaluation.answers.max_new_tokens=1",),
    "rollouts": ("rollouts.sample.decoding.max_new_tokens=1",),
}
"""Settings by stage that stand for an answer that ends at once."""


def check_memory(
    study: Study, facts: Facts, cluster: Cluster, say: Callable[[str], None], stages: Collection[str] = STAGES
) -> None:
    """Refuse a study of which a run, the reference or the evaluation can never fit, and say which analysis cannot.

    Only what is sure is refused: batches that are too large count as fitting if one of a single row does, since they
    are halved where memory runs out; an answer may be of one token; what is not known fits. A student so small that
    everything about it fits in half of the memory is not looked at.

    Raises:
        ClusterError: naming everything that does not fit, and settings with which it would.
    """
    if cluster.gpu is None and _is_small(study, facts, cluster):
        return
    shapes = Shapes(facts)
    try:
        plan = make_plan(study, facts, cluster, shapes=shapes, remedies=False, stages=stages)
    except StudentError:  # a family that cannot be followed on shapes
        return
    impossible = [line for line in plan if line.problem and not _fits_alone(study, facts, cluster, shapes, line)]
    told = [replace(line, remedy=remedy(study, facts, cluster, shapes, line.need)) for line in impossible]
    analyses = [line for line in told if line.need.what.startswith("geometry.")]
    for line in analyses:
        say(f"  {line.problem}; it will fail, and {advice(line)}")
    if refused := [f"{line.problem}; {advice(line)}." for line in told if line not in analyses]:
        raise ClusterError("\n".join([*refused, ESCAPE]))


def check_disk(
    study: Study,
    facts: Facts,
    cluster: Cluster,
    free: int | None,
    say: Callable[[str], None],
    stages: Collection[str] = STAGES,
) -> None:
    """Refuse a study whose runs, with what their losses need of the base and of a teacher, leave more in the store than
    is ``free`` there, in bytes; say it where only what runs resume from does not fit besides.

    Raises:
        ClusterError: with figures, and settings with which it fits.
    """
    if free is None:
        return
    shapes, gpu = Shapes(facts), cluster.gpu is not None
    try:
        asked = stage_needs(study, facts, shapes, gpu, stages=("reference",)) if "reference" in stages else []
        stored = sum(sum(need.disk.values()) for need in asked)
        if _most_written(study, facts) + stored < free:
            return
        needs = stage_needs(study, facts, shapes, gpu, stages=("train",))
    except StudentError:
        return
    deltas, snapshots = (sum(need.disk.get(what, 0) for need in needs) for what in (DELTAS, SNAPSHOTS))
    passing = max((need.disk.get(CHECKPOINTS, 0) * cluster.place(study, need)[1] for need in needs), default=0)
    passing += sum(need.disk.get(STARTS, 0) for need in needs)
    if stored + deltas + snapshots + passing <= free:
        return
    runs = sum(need.units for need in needs if CHECKPOINTS in need.disk)
    room = (free - stored - deltas - passing) / runs / GIB
    fewer = (
        f"--set training.max_snapshot_gib={room:.3g} keeps as many snapshots as there is room for"
        if room > 0
        else "there is no room for snapshots (training.snapshots=0); train adapters (training.lora) or fewer runs"
    )
    told = f", with {', '.join(_disk_terms(asked))} for their losses" if stored else ""
    said = (
        f"{runs} runs leave deltas of {gib(deltas)} and snapshots of {gib(snapshots)}, and take {gib(passing)} for "
        f"checkpoints while they train{told}; {gib(free)} are free in the store. {fewer}, or give a "
        "larger disk (store)."
    )
    if stored + deltas + snapshots > free:
        raise ClusterError(f"{said}\n{ESCAPE}")
    say(f"  {said}")


def _disk_terms(needs: Sequence[Need]) -> list[str]:
    """What needs leave in the store, in words."""
    return [f"{name} of {gib(held)}" for need in needs for name, held in need.disk.items()]


def _most_written(study: Study, facts: Facts) -> int:
    """More than all runs could write: as if every weight were trained."""
    parameters = sum(prod(value.shape) for value in model_shape(facts.config).parameters())
    runs = [spec.training for spec in study.plan.points() if spec.name not in facts.settled]
    return 4 * parameters * sum(1 + training.snapshots + 2 * 4 for training in runs)


def _fits_alone(study: Study, facts: Facts, cluster: Cluster, shapes: Shapes, line: Line) -> bool:
    """Whether it fits a row at a time, which it comes to by itself, with answers as short as can be, and alone on its
    card.
    """
    smaller = [override for override in line.need.remedies if override.partition("=")[0].endswith("batch_size")]
    least = [*smaller[-1:], *SHORTEST.get(stage_of(line.need), ())]
    if 0 < study.actors.gpus < 1:
        least.append("actors.gpus=1")
    known = tuple(override for override in least if changed_study(study, (override,)) is not None)
    return bool(known) and fits_with(study, facts, cluster, shapes, line.need, known)


def _is_small(study: Study, facts: Facts, cluster: Cluster) -> bool:
    """Whether all that could ever be held of a student is less than half of a machine's memory: hundreds of copies of
    its weights, and for each token of a batch everything that a block makes, in fp32.
    """
    config, longest = facts.config, max(facts.rollouts.longest, facts.train.longest)
    model, text = model_shape(config), config.get_text_config()
    parameters = sum(prod(value.shape) for value in model.parameters())
    rows = max([spec.training.micro_batch_size for spec in study.plan.points()] + [study.probes.sequences])
    heads = getattr(text, "num_attention_heads", 1)
    token = 4 * text.num_hidden_layers * (64 * text.hidden_size + 8 * heads * longest)
    head = 16 * min(rows * longest * text.vocab_size, 2**26)
    return 400 * 4 * parameters + rows * longest * token + head < cluster.machine / 2
