"""Runs that are trained in stages or rounds: a chain of trainings, each from where the one before it ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raygeo.cluster.remote import call
from raygeo.models.sum import REVISION, save_sum
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.plan import PlannedRun, described
from raygeo.pipeline.published import KIND
from raygeo.pipeline.rollouts import Rollouts, Round, plan_round
from raygeo.pipeline.student import Student, continued_key
from raygeo.records import FINISHED, RunRecord
from raygeo.settings import content_key, unit_key
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.training.settings import RunSpec
from raygeo.training.worker import DELTAS, SNAPSHOTS, TABLES, delta_folder, run_record


@dataclass(frozen=True)
class Link:
    """One training: what it starts from, whose folder may not be there yet, and where its rollouts come from.

    ``before`` are the links before it. ``stage`` counts from 0, ``round`` from 1; a stage that is not in rounds has
    None for it and its ``sampled``.
    """

    spec: RunSpec
    key: str
    start: Student
    before: tuple[Link, ...]
    stage: int
    round: int | None = None
    sampled: Round | None = None


@dataclass(frozen=True)
class Chain:
    """The trainings of a run, in order."""

    run: PlannedRun
    links: tuple[Link, ...]

    @property
    def key(self) -> str:
        """Key of what all of them together changed."""
        return _sum_key(self.links)

    def of_stage(self, stage: int) -> list[Link]:
        """The trainings of a stage."""
        return [link for link in self.links if link.stage == stage]

    def stage_key(self, stage: int) -> str:
        """Key of what a stage changed, relative to where it began."""
        return _sum_key(self.of_stage(stage))

    @property
    def stages(self) -> list[dict[str, Any]] | None:
        """The stages as ``RunRecord`` holds them; None for a run of one training."""
        return [described(stage) for stage in self.run.stages] if self.run.is_chain else None


def _sum_key(links: Sequence[Link]) -> str:
    if len(links) == 1:
        return links[0].key
    return unit_key(links[-1].spec.revisions, "sum", REVISION, [link.key for link in links])


def chain_of(context: StudyContext, student: Student, rollouts: Rollouts, run: PlannedRun) -> Chain:
    """The trainings of ``run``, which starts from ``student``, and their keys; nothing is made."""
    links: list[Link] = []
    for index, stage in enumerate(run.stages):
        for number, spec in enumerate(stage.specs, 1):
            start = student if not links else _after(context.store, links[-1])
            if start is student:  # the base, in the first round too
                spec = spec.model_copy(update={"reference": "start"})
            if links and spec.training.lora is not None:
                spec = _with_new_adapter(spec, len(links))
            sampled = None
            if stage.rounds is not None:
                sampled = plan_round(context, rollouts, student, start, stage.sampling, number)
            drawn = rollouts.key if sampled is None else sampled.key
            key = spec.key(start.key, drawn, rollouts.teacher, student.key)
            links.append(Link(spec, key, start, tuple(links), index, None if sampled is None else number, sampled))
    return Chain(run, tuple(links))


def _with_new_adapter(spec: RunSpec, number: int) -> RunSpec:
    """The training with an adapter of its own: drawn again from ``init_seed`` alone, those of all stages and rounds
    would begin in the same input directions, and what they changed would be alike for that.
    """
    seed = int(content_key("init_seed", spec.training.init_seed, number), 16) % 2**31
    return spec.model_copy(update={"training": spec.training.model_copy(update={"init_seed": seed})})


def _after(store: Store, link: Link) -> Student:
    key = continued_key(link.start.key, link.key)
    return replace(link.start, key=key, folder=store.stored(KIND, key), description=f"what {link.spec.name} left")


def join(context: StudyContext, student: Student, chains: Iterable[Chain]) -> None:
    """Add up the trainings of every chain of which all are finished, unless the store has the sum.

    A sum has the delta of all trainings, the deltas after each but the last as snapshots, the curves one after the
    other, and a record of its own. A stage in rounds beside other stages has a sum too.
    """
    for chain in chains:
        if len(chain.links) > 1:
            with context.surviving(f"the sum of the stages of {chain.run.name}"):
                _join(context, student, chain, chain.links, whole=True)
                for stage in range(len(chain.run.stages)):
                    if len(links := chain.of_stage(stage)) > 1 and len(links) < len(chain.links):
                        _join(context, links[0].start, chain, links, whole=False)


def _join(context: StudyContext, student: Student, chain: Chain, links: Sequence[Link], *, whole: bool) -> None:
    store, key = context.store, _sum_key(links)
    rows = [finished_record(store, link.key) for link in links]
    if any(row is None for row in rows):
        return
    if key in store.finished(TABLES) and store.has_folder(DELTAS, key):
        context.count(0, 1)
        return
    records = [row for row in rows if row is not None]
    deltas = [store.stored(DELTAS, link.key) for link in links]
    ends = [sum(record.steps or 0 for record in records[:count]) for count in range(1, len(records) + 1)]

    def work(tick: Any) -> None:
        if whole:
            with store.making(SNAPSHOTS, key) as folder:
                for count, step in enumerate(ends[:-1], 1):
                    (folder / f"step-{step:06d}").mkdir()
                    save_sum(deltas, folder / f"step-{step:06d}", count)
        with store.making(DELTAS, key) as folder:
            save_sum(deltas, folder)

    name = chain.run.name if whole else chain.run.stages[links[0].stage].spec.name
    context.pool.close()  # it may need the CPUs of idle actors, such as those that sampled the last round
    call(work, f"adding up the stages of {name}", context.progress, cpus=context.study.student.cpus, gpus=0)
    spec = chain.run.spec if whole else chain.run.stages[links[0].stage].spec
    record = run_record(
        spec,
        key,
        FINISHED,
        steps=ends[-1],
        examples=sum(record.examples or 0 for record in records),
        tokens=sum(record.tokens or 0 for record in records),
        seconds=sum(record.seconds or 0.0 for record in records),
        started=records[0].started,
        ended=records[-1].ended,
        delta=delta_folder(store, key),
        student=student.key,
        adapter_init=records[0].adapter_init,
    )
    curves = _following(store, links, ends)
    store.write_unit(key, {"training_curves": curves, "runs": [record.row()]})
    context.count(1, 0)


def finished_record(store: Store, key: str) -> RunRecord | None:
    """The record of a training whose delta is in the store, None if there is none."""
    if key not in store.finished(TABLES) or not store.has_folder(DELTAS, key):
        return None
    [row] = store.read_unit("runs", key).to_pylist()
    record = RunRecord.of(row)
    return record if record.status == FINISHED else None


def _following(store: Store, links: Sequence[Link], ends: Sequence[int]) -> pa.Table:
    """The curves of trainings one after the other, steps counted from the first of them."""
    rows = [
        row | {"step": row["step"] + begun}
        for link, begun in zip(links, [0, *ends], strict=False)
        for row in store.read_unit("training_curves", link.key).to_pylist()
    ]
    return to_arrow("training_curves", rows)


def link_rows(store: Store, chains: Iterable[Chain]) -> list[dict[str, Any]]:
    """Rows of the table ``stages``: every training of the runs that have several, and how it ended."""
    rows = []
    for chain in chains:
        if not chain.run.is_chain:
            continue
        begun: int | None = 0
        for link in chain.links:
            record = None
            if link.key in store.finished(TABLES):
                record = RunRecord.of(store.read_unit("runs", link.key).to_pylist()[0])
            end = None if begun is None or record is None or record.steps is None else begun + record.steps
            several = len(chain.run.stages) > 1
            row = {
                "run": chain.run.name,
                "stage": link.stage + 1,
                "round": link.round,
                "leg": chain.run.stages[link.stage].spec.name if several else None,
                "loss": link.spec.loss.type,
                "lr": link.spec.training.lr,
                "seed": link.spec.training.seed,
                "reference": link.spec.reference,
                "first_step": None if begun is None else begun + 1,
                "last_step": end,
                "status": "missing" if record is None else record.status,
                "key": link.key,
                "student": link.start.key,
                "rollouts": None if link.sampled is None else link.sampled.key,
            }
            if record is not None:
                row |= {"examples": record.examples, "tokens": record.tokens, "seconds": record.seconds}
            if link.sampled is not None and link.sampled.key in store.finished(("rollouts", "counts")):
                counts = store.read_unit("counts", link.sampled.key).to_pylist()
                values = {count["name"]: count["value"] for count in counts}
                row |= {"sampled": values["rows"], "sampled_right": values["correct"]}
            rows.append(row)
            begun = end
    return rows
