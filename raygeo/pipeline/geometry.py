"""Stage 6: every analysis of the trained weights, fanned out over the pool."""

from collections.abc import Mapping
from functools import partial

import pyarrow as pa

from raygeo.analyses.inputs import AnalysisInputs, Training
from raygeo.analyses.registry import analyses
from raygeo.cluster.sharded import ShardedOperator
from raygeo.errors import DataError
from raygeo.losses.registry import parse_loss
from raygeo.models.run import Run
from raygeo.pipeline.config import AskedAnalyses
from raygeo.pipeline.context import StageContext, StudyContext
from raygeo.pipeline.journal import StoreJournal
from raygeo.pipeline.probes import provide_probes
from raygeo.pipeline.published import published, run_records
from raygeo.pipeline.rollouts import Rollouts, heldout_exam
from raygeo.pipeline.student import Student
from raygeo.store import AnyPath, Store


def analyse_runs(
    context: StudyContext,
    student: Student,
    rollouts: Rollouts,
    runs: list[Run],
    reference: str,
    teacher: AnyPath | None = None,
) -> None:
    """Publish the tables of all analyses the study asks for; empty ones if there is nothing but the base.

    ``reference`` names the run that others are compared with; ``teacher`` is the folder of a teacher's likeliest
    tokens, where a loss learned from one.
    """
    store, study = context.store, context.study
    records = run_records(store)
    losses = {name: parse_loss(record.loss) for name, record in records.items() if record.loss is not None}
    inputs = AnalysisInputs(
        base=student.folder,
        runs=runs,
        reference=reference,
        records=records,
        table=partial(published, store),
        make_probes=lambda: provide_probes(context, student, rollouts),
        exam=heldout_exam(rollouts, study.evaluation.engine),
        journals=partial(StoreJournal, store),
        gather=partial(ShardedOperator, settings=study.actors),
        training=Training(losses, store, rollouts.key, rollouts.tokens, teacher, rollouts.teacher),
    )
    analyse(context, study.geometry if len(runs) > 1 else None, inputs)


def analyse(context: StageContext, asked: AskedAnalyses | None, inputs: AnalysisInputs) -> None:
    """Publish the tables of all analyses that are ``asked`` for, and empty those of all others.

    An analysis that fails is left out, with its finished tasks in its tables; the others are made.

    Raises:
        FullStoreError: the store's disk is full.
    """
    chosen = {} if asked is None else asked.asked()
    for name, analysis in analyses(None if asked is None else asked.own).items():
        if name not in chosen:
            clear_tables(context.store, analysis.tables)
            continue
        with context.surviving(label(name)):
            try:
                if "training" in analysis.needs and inputs.training is None:
                    raise DataError("how the models were trained is not known, which this analysis needs.")
                for earlier in analysis.after:
                    if label(earlier) in context.missing:
                        raise DataError(f"it is made of what {label(earlier)} finds, which failed.")
                workloads = analysis.make(chosen[name], inputs)
            except Exception:
                clear_tables(context.store, analysis.tables)
                raise
            context.publish(*workloads)


def label(name: str) -> str:
    """What an analysis is called in messages."""
    return f"geometry.{name}"


def clear_tables(store: Store, tables: Mapping[str, pa.Schema]) -> None:
    """Publish empty tables, whatever an earlier study put there."""
    for table, columns in tables.items():
        if store.revisions(table) != {} or store.table(table, columns).num_rows:
            store.publish(table, [], columns)
