"""Which parts of a store were made by another revision of the code than this one."""

from collections import Counter
from collections.abc import Mapping

from raygeo.analyses.registry import analyses, schemas
from raygeo.data.readers import READERS
from raygeo.data.revisions import text_revisions
from raygeo.data.sampling import Sampling
from raygeo.errors import StoreError
from raygeo.evaluation.answers import Answers
from raygeo.generation.choice import ENGINES
from raygeo.generation.renderer import RENDERERS
from raygeo.losses.registry import LOSSES
from raygeo.pipeline.published import renamed_columns, run_records
from raygeo.settings import split_key
from raygeo.store import Store
from raygeo.training.settings import REVISION
from raygeo.workload import Workload

_AGAIN = "Run the study again to make it anew."
_FOLLOWING = ("accuracy", "drops", "mcnemar", "pass_at_k")
"""What follows from answers."""
_RENAMED = {
    "curves": "training_curves",
    "rejected": "set_aside",
    "yardsticks": "cosine_baselines",
    "floors": "noise_floors",
    "spans": "span_residuals",
    "separations": "permutation_tests",
    "maps": "mds",
    "map_axes": "mds_axes",
}
"""What tables were called before revisions were kept, and what they are called now."""


def outdated_tables(store: Store) -> list[str]:
    """Sentences on the runs and tables that other revisions of the code made, and on what must be left out for it.

    Nothing is said of tables that cannot be read.
    """
    makers: dict[str, list[type[Workload]]] = {"rollouts": [], "trials": []}
    makers |= {table: [Answers] for table in (*Answers.tables, *_FOLLOWING)}
    known = {"training": REVISION, **text_revisions(RENDERERS, ENGINES, READERS)}
    known |= {kind.name: kind.revision for kind in (Sampling, Answers)}
    for analysis in analyses().values():
        makers |= {table: [kind for kind in analysis.workloads if table in kind.tables] for table in analysis.tables}
        known |= {kind.name: kind.revision for kind in analysis.workloads}
    before, others, changed = [], [], []
    for table, kinds in makers.items():
        if not _opens(store, table):
            continue
        made = store.revisions(table)
        now = {kind.name: kind.revision for kind in kinds} | {name: known[name] for name in made or () if name in known}
        if not made:
            of_old = made is None and store.has_table(table)
            before += [table] * (of_old or (table in (*_FOLLOWING, "trials") and _has_rows(store, table)))
        elif made != now:
            changed.append(_changed(table, made, now))
    for table, columns in schemas().items():
        if _opens(store, table) and (lacking := renamed_columns(store, table, columns)):
            others.append(f"{table} (no {', '.join(lacking)})")
    sentences = [*_outdated_runs(store), *changed]
    if before:
        sentences.append(f"Made before revisions were kept: the tables {', '.join(before)}. {_AGAIN}")
    if others:
        sentences.append(
            f"Left out, because their columns have other names now: the tables {', '.join(others)}. {_AGAIN}"
        )
    if renamed := [f"{old} (now {new})" for old, new in _RENAMED.items() if store.has_table(old)]:
        sentences.append(f"Left out, because they have other names now: the tables {', '.join(renamed)}. {_AGAIN}")
    return sentences


def _opens(store: Store, table: str) -> bool:
    try:
        store.columns(table)
    except StoreError:
        return False
    return True


def _has_rows(store: Store, table: str) -> bool:
    try:
        return store.has_table(table) and store.table(table).num_rows > 0
    except StoreError:
        return False


def _changed(table: str, made: Mapping[str, int], now: Mapping[str, int]) -> str:
    said = [
        f"{name} of revision {made[name]} (now {revision})" if name in made else f"{name} is missing"
        for name, revision in now.items()
        if made.get(name) != revision
    ]
    said += [f"{name}, which no longer makes it" for name in made if name not in now]
    return f"The table {table} was made by other revisions of the code: {', '.join(said)}. {_AGAIN}"


def _outdated_runs(store: Store) -> list[str]:
    """What runs were trained with other revisions of the trainer or their loss."""
    found: Counter[tuple[str, str]] = Counter()
    try:
        records = run_records(store)
    except StoreError:
        return []
    for record in records.values():
        if record.loss is None or record.loss["type"] not in LOSSES:
            continue
        made, now = split_key(record.key)[1], f"{REVISION}.{LOSSES[record.loss['type']].revision}"
        if made != now:
            found[made, now] += 1
    return [
        f"{count} {'run was' if count == 1 else 'runs were'} trained with revision {made or 'unknown'} of trainer and "
        f"loss, which is now {now}. {_AGAIN}"
        for (made, now), count in found.items()
    ]
