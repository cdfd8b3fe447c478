"""What is wrong with a cluster, in sentences that say what to do."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from raygeo.doctor.machine import MISSING, Facts
from raygeo.doctor.nodes import Node

SKEW_SECONDS = 2.0
"""Clocks may differ by so much: how old a lease on a store is and the times in MLflow go by them."""
_INSTALL = "Install the same on every node: pip install -c constraints.txt -e ."


def wrong_with_nodes(nodes: Sequence[Node], here: Facts, store: str | None) -> Iterator[str]:
    """What keeps these nodes, beside the driver's machine, from running a study together."""
    for node in nodes:
        if node.facts is None:
            yield (
                f"{node.name} said nothing of itself: {node.silence}. See `ray status`, and that raygeo can be "
                "imported there"
            )
            continue
        if node.facts.trouble:
            yield f"DeepSpeed cannot be imported on {node.name}: {node.facts.trouble}"
        for folder in node.facts.unseen:
            yield f"{node.name} does not see {folder}. Put it where every node sees it"
    yield from _differing(nodes, here)
    if store is not None:
        yield from _unshared(nodes, store)
    yield from _skewed(nodes)
    for node in nodes:
        if node.gpu_trouble:
            yield (
                f"the GPUs of {node.name} cannot be used: {node.gpu_trouble}. See nvidia-smi there, that torch is a "
                "build for CUDA, and that Ray was not started with --num-gpus for cards that are not there"
            )


def advice_on_nodes(nodes: Sequence[Node], autoscaled: bool = False) -> Iterator[str]:
    """What works, and might be better or is not known."""
    if autoscaled:
        yield f"the cluster starts nodes as they are needed; the {len(nodes)} that are up now were asked"
    if len(nodes) > 1:
        for node in nodes:
            if node.head and node.amount("CPU") > 0:
                yield (
                    f"{node.name} is the head and has {node.amount('CPU'):g} CPUs, so the first worker of a run may be "
                    "placed beside the drivers. Start it with --num-cpus=0 (in cluster.yaml, resources: {CPU: 0})"
                )
    for node in nodes:
        if node.amount("GPU") >= 1 and node.gpus is None and not node.gpu_trouble:
            yield f"the GPUs of {node.name} are at work and were not tried"


def _differing(nodes: Sequence[Node], here: Facts) -> Iterator[str]:
    answers = [(node.name, node.facts) for node in nodes if node.facts is not None]
    for package, own in here.versions.items():
        others = defaultdict(list)
        for name, facts in answers:
            if facts.versions[package] != own:
                others[facts.versions[package]].append(name)
        for version, names in others.items():
            said = f"{MISSING} on" if version == MISSING else f"{version} on"
            yield f"{package} is {own} for the driver and {said} {', '.join(names)}. {_INSTALL}"
    stale = [name for name, facts in answers if facts.code != here.code]
    if stale:
        yield (
            f"the code of raygeo on {', '.join(stale)} is not the driver's, though the version may be. {_INSTALL}, or "
            "send it with the job: ray job submit --working-dir ."
        )


def _unshared(nodes: Sequence[Node], store: str) -> Iterator[str]:
    for node in nodes:
        if node.store_trouble:
            yield (
                f"{node.name} cannot write to the store {store}: {node.store_trouble}. See its permissions there, or "
                "the node's credentials"
            )
        elif node.apart:
            yield (
                f"{node.name} and the driver do not see each other's files in the store {store}. Mount one file "
                "system at that place on every node, or give a URI"
            )


def _skewed(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        if abs(node.offset) - node.bound > SKEW_SECONDS:
            way = "ahead of" if node.offset > 0 else "behind"
            yield (
                f"the clock of {node.name} is {abs(node.offset):.1f} s {way} the driver's (give or take "
                f"{node.bound:.3f} s). Let all nodes take their time from one server (chrony)"
            )
