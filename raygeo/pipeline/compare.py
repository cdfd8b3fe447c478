"""Checkpoints and adapters compared without a study: the analyses of a study, its store and its page."""

from collections.abc import Mapping
from functools import partial

from raygeo.analyses.inputs import AnalysisInputs
from raygeo.analyses.registry import know
from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.nodes import check_nodes
from raygeo.cluster.preflight import check_fits
from raygeo.cluster.session import connect
from raygeo.cluster.sharded import ShardedOperator
from raygeo.data.readers.jsonl import JsonlReader
from raygeo.data.validation import SetAside, required_text
from raygeo.errors import ConfigError, DataError
from raygeo.generation.renderer import renderer_for
from raygeo.interrupts import handled
from raygeo.models.loading import context_length, load_tokenizer, read_config
from raygeo.pipeline.compared import Models, find_models, provide_models
from raygeo.pipeline.comparison import Comparison
from raygeo.pipeline.config import study_yaml
from raygeo.pipeline.context import StageContext, timed_stage
from raygeo.pipeline.found import analyses_found
from raygeo.pipeline.geometry import analyse
from raygeo.pipeline.journal import StoreJournal
from raygeo.pipeline.logged import logged
from raygeo.pipeline.probes import PROBES, save_probes
from raygeo.pipeline.published import published, run_records
from raygeo.pipeline.report import save_page, say_summary
from raygeo.pipeline.standing import COMPARED, COMPARISON, STUDY, Standing, now
from raygeo.progress import Progress, StageTime, stage_table
from raygeo.report.page import PageContext
from raygeo.report.typeset import counted
from raygeo.settings import content_key
from raygeo.store import AnyPath, Store
from raygeo.store.cleaning import COMPARISON as COMPARED_HERE
from raygeo.store.lease import held
from raygeo.versions import versions

UNKNOWN = (
    "How the models were trained is not known here, neither their losses and learning rates nor their seeds and data, "
    "so no difference between them can be put down to any of these."
)
SAID = (
    "How {} trained is what the file of the comparison says, and was not checked. What it does not say, of data and "
    "settings besides losses, learning rates and seeds, may differ too."
)
SAID_OF_SOME = "Nothing is known of how the others were trained."
NOT_ASKED = (
    "Only weights were compared: no solutions were given, so what needs texts (paths between models, representations, "
    "curvature) was not asked for and is missing."
)


def compare_models(
    comparison: Comparison, *, address: str | None = None, progress: Progress | None = None, wait: bool = False
) -> Store:
    """Compare models: whatever the store lacks is made, and the rest is taken from there. Returns the store.

    ``address`` names a running Ray cluster. An analysis that fails does not keep the page from being written without
    it. Where another process works on the store, this one is refused, or with ``wait`` waits for it.

    Raises:
        RaygeoError: what is wrong and what to do about it; everything finished before stays in the store.
        KeyboardInterrupt: SIGINT or SIGTERM came; the same call resumes.
    """
    know(comparison.geometry.own)
    progress = progress or Progress()
    find_models(comparison)  # what is wrong with them, or with the solutions, is told before Ray is started
    pairs = [] if comparison.solutions is None else _read_pairs(comparison.solutions)
    store = Store(comparison.store)
    if store.read_bytes(STUDY) is not None:
        raise ConfigError(f"{store.location} holds a study, whose tables would be lost; give another --store.")
    store.check_own(COMPARISON)
    settings = study_yaml(comparison)
    times: list[StageTime] = []
    with (
        handled(),
        held(store, "a comparison", wait=wait, say=progress.say),
        store.noting(COMPARED_HERE) as ledger,
        logged(store, "comparison"),
    ):
        store.write_bytes(COMPARISON, settings.encode())
        try:
            context = _run_stages(comparison, pairs, store, settings, address, progress, times)
        except KeyboardInterrupt:
            done = ", ".join(time.stage for time in times) or "nothing"
            progress.say(f"\nstopped; done: {done}. The same command resumes.")
            raise
        ledger.whole = True
        progress.show(stage_table(times))
    context.check_whole()
    return store


def _run_stages(
    comparison: Comparison,
    pairs: list[tuple[str, str]],
    store: Store,
    settings: str,
    address: str | None,
    progress: Progress,
    times: list[StageTime],
) -> StageContext:
    with timed_stage("start", times, progress, None):
        connect(address)
        check_fits("an actor (actors)", comparison.actors.demand)
        check_nodes(store, gpus=comparison.actors.gpus > 0, say=progress.say)
    with ActorPool(comparison.actors, progress.say, "comparison") as pool:
        context = StageContext(store, pool, progress)
        several = len(comparison.models) > 1
        about = PageContext(
            title=f"{counted(len(comparison.models), 'model')} and {'their' if several else 'its'} base",
            student=f"Base: {comparison.base}",
            reference_run=comparison.reference,
            created=now(),
            settings_yaml=settings,
            versions=versions(),
            stages=["start", "models", "geometry"],
            caveats=[*_known(comparison), *([] if comparison.solutions else [NOT_ASKED])],
            purpose=COMPARED,
        )
        standing = Standing(store, about, times, progress)
        with standing.stage("models", context):
            models = provide_models(context, comparison)
            probes = _probes(store, comparison, pairs, models)
            standing.note(caveats=[*about.caveats, *models.unchecked])
        with standing.stage("geometry", context), context.surviving("geometry"):
            analyse(context, comparison.geometry, _inputs(context, comparison, models, probes))
            progress.say(f"  {analyses_found(comparison.geometry.asked(), context.missing)}")
        with standing.stage("report", context):
            page = save_page(store, standing.about)
            for part, error in page.failures.reasons.items():
                context.leave_out(part, error)
            say_summary(page, progress)
    progress.say(f"\nreport:  {page.path}")
    return context


def _known(comparison: Comparison) -> list[str]:
    """What is known of how the models were trained."""
    described = comparison.described
    if not described:
        return [UNKNOWN]
    if len(described) == len(comparison.models):
        return [SAID.format("models were")]
    names = f"{', '.join(described)} {'was' if len(described) == 1 else 'were'}"
    return [f"{SAID.format(names)} {SAID_OF_SOME}"]


def _inputs(
    context: StageContext, comparison: Comparison, models: Models, probes: Mapping[str, AnyPath]
) -> AnalysisInputs:
    store = context.store
    return AnalysisInputs(
        base=models.base,
        runs=models.runs,
        reference=comparison.reference,
        records=run_records(store),
        table=partial(published, store),
        make_probes=lambda: probes,
        journals=partial(StoreJournal, store),
        gather=partial(ShardedOperator, settings=comparison.actors),
        chat=comparison.chat,
    )


def _probes(store: Store, comparison: Comparison, pairs: list[tuple[str, str]], models: Models) -> dict[str, AnyPath]:
    """Make the probes of the solutions given: ``solutions``, and ``curvature``, the first of them."""
    reader, settings = comparison.solutions, comparison.probes
    if reader is None:
        return {}
    pairs = pairs[: settings.sequences]
    renderer = renderer_for(load_tokenizer(models.base), comparison.chat)
    key = content_key("compared-probes", renderer.revision, renderer.identity, settings, pairs, models.key)
    probes = {"solutions": pairs, "curvature": pairs[: settings.curvature_sequences]}
    if not store.has_folder(PROBES, key):
        limit = context_length(read_config(models.base))
        lengths = [len(renderer.encode(*pair)) for pair in pairs]
        if limit is not None and max(lengths) > limit:
            raise DataError(
                f"{reader.path}: solution {lengths.index(max(lengths)) + 1} has {max(lengths)} tokens with its prompt, "
                f"and {comparison.base} takes {limit}; leave out what is longer."
            )
        save_probes(store, renderer, key, probes)
    return {name: store.stored(PROBES, key, f"{name}.npz") for name in probes}


def _read_pairs(reader: JsonlReader) -> list[tuple[str, str]]:
    """Prompts with completions, in order.

    Raises:
        DataError: there are none, or one cannot be used or was cut off.
    """
    pairs, bad = [], []
    for record in reader.rollouts():
        try:
            if record.error is not None:
                raise SetAside(record.error)
            if record.values.get("truncated"):
                raise SetAside("completion was cut off")
            pairs.append((required_text(record.values, "prompt"), required_text(record.values, "completion")))
        except SetAside as reason:
            bad.append(f"{record.origin}:{record.line} {reason}")
    if bad:
        raise DataError(
            f"{len(bad)} of {len(pairs) + len(bad)} solutions cannot be used: {'; '.join(bad[:3])}. Correct them, or "
            "take them out."
        )
    if not pairs:
        raise DataError(f"{reader.path} holds no solution; give JSON lines with a prompt and a completion each.")
    return pairs
