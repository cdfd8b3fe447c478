"""The fixed texts of a study on which likelihood, curvature and representations are measured."""

from raygeo.data.probes import HELDOUT_SEQUENCES, Probe
from raygeo.generation.renderer import Renderer
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.rollouts import Rollouts
from raygeo.pipeline.student import Student
from raygeo.settings import content_key
from raygeo.store import AnyPath, Store

PROBES = "probes"


def provide_probes(context: StudyContext, student: Student, rollouts: Rollouts) -> dict[str, AnyPath]:
    """Make the study's probes, the same for every run, and return their files.

    ``solutions`` holds one correct held-out solution a prompt, ``curvature`` the first of them, and ``answer``, where
    prompts have gold answers, the bare answer put directly after the prompt.

    Empty when there is no correct held-out solution.
    """
    settings, store = context.study.probes, context.store
    texts = heldout_solutions(rollouts)[: settings.sequences]
    if not texts:
        return {}
    solutions = [(prompt, completion) for prompt, completion, _ in texts]
    probes = {"solutions": solutions, "curvature": solutions[: settings.curvature_sequences]}
    answers = [(prompt, settings.answer_prefix + gold) for prompt, _, gold in texts if gold]
    if answers:
        probes["answer"] = answers
    key = content_key(PROBES, settings, rollouts.key, student.key)
    if not store.has_folder(PROBES, key):
        save_probes(store, rollouts.renderer, key, probes)
    return {name: store.stored(PROBES, key, f"{name}.npz") for name in probes}


def provide_heldout(context: StudyContext, student: Student, rollouts: Rollouts) -> AnyPath | None:
    """Make the probe whose likelihood is measured while training: correct held-out solutions, one a prompt.

    It depends on rollouts and student alone, as a run's key does, so that all runs of a store can be compared.
    """
    texts = heldout_solutions(rollouts)[:HELDOUT_SEQUENCES]
    if not texts:
        return None
    key = content_key("heldout", rollouts.key, student.key)
    if not context.store.has_folder(PROBES, key):
        heldout = [(prompt, completion) for prompt, completion, _ in texts]
        save_probes(context.store, rollouts.renderer, key, {"heldout": heldout})
    return context.store.stored(PROBES, key, "heldout.npz")


def heldout_solutions(rollouts: Rollouts) -> list[tuple[str, str, str | None]]:
    """The first correct, complete solution of every held-out prompt that has one: prompt, completion, gold."""
    chosen: dict[str, tuple[str, str, str | None]] = {}
    for row in rollouts.heldout.to_pylist():
        if row["correct"] and not row["truncated"]:
            chosen.setdefault(row["prompt_id"], (row["prompt"], row["completion"], row["gold"]))
    return list(chosen.values())


def save_probes(store: Store, renderer: Renderer, key: str, probes: dict[str, list[tuple[str, str]]]) -> None:
    """Tokenise the (prompt, completion) pairs of each probe and store them."""
    with store.making(PROBES, key) as folder:
        for name, pairs in probes.items():
            Probe(name, [renderer.encode(*pair) for pair in pairs]).save(folder / f"{name}.npz")
