"""Ask every node of the cluster, all at the same time; one that does not answer is no hindrance."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygeo.cluster.nodes import answer, answered, marked
from raygeo.doctor import machine
from raygeo.doctor.machine import Facts
from raygeo.store import Store

PATIENCE = 90.0
"""Seconds that the first answer of a node is waited for: a worker must start and import what training needs."""
GPU_PATIENCE = 20.0
"""Seconds that GPUs which are at work are waited for."""
_CALLS = 5


@dataclass
class Node:
    """A living node, and what it answered. ``offset`` and ``bound`` are seconds: how far its clock is ahead of this
    process's, and by how much that may be off. ``gpus`` are the names of its cards, None where they were not tried.
    """

    id: str
    name: str
    head: bool
    resources: Mapping[str, float]
    facts: Facts | None = None
    silence: str = ""
    """Why there are no facts."""
    offset: float = 0.0
    bound: float = 0.0
    gpus: tuple[str, ...] | None = None
    gpu_trouble: str = ""
    store_trouble: str = ""
    apart: bool = False
    """Whether it and the driver do not see each other's files in the store."""

    def amount(self, resource: str) -> float:
        """How much of a resource Ray counts there."""
        return self.resources.get(resource, 0.0)

    @property
    def answers(self) -> bool:
        """Whether it said anything of itself."""
        return self.facts is not None


@ray.remote(num_cpus=0, max_restarts=0)
class _Examiner:
    """On one node."""

    def describe(self, folders: Sequence[str]) -> Facts:
        return machine.describe(folders)

    def time(self) -> float:
        return time.time()

    def answer(self, location: str, token: str) -> bool:
        return answer(location, token)


@ray.remote(num_cpus=0, max_retries=0)
def _use_gpus(count: int) -> tuple[tuple[str, ...], str]:
    return machine.use_gpus(count)


def living_nodes() -> list[Node]:
    """The cluster's living nodes, the head first, named by their hosts."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = [node["NodeManagerHostname"] for node in alive]
    found = []
    for node, host in zip(alive, hosts, strict=True):
        name = host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}"
        found.append(Node(node["NodeID"], name, "node:__internal_head__" in node["Resources"], node["Resources"]))
    return sorted(found, key=lambda node: (not node.head, node.name))


def examine_nodes(nodes: Sequence[Node], folders: Sequence[str] = (), store: Store | None = None) -> None:
    """Fill in what the nodes say of themselves, their GPUs and clocks, and of a ``store`` that is there.

    The driver and every node leave a file in the store, and look for each other's.
    """
    actor: Any = _Examiner
    examiners = {
        node.id: actor.options(name=f"doctor of {node.name}", scheduling_strategy=_on(node)).remote() for node in nodes
    }
    try:
        gpus = _ask_gpus(nodes)
        answers = _gather({node.id: examiners[node.id].describe.remote(list(folders)) for node in nodes}, PATIENCE)
        for node in nodes:
            node.facts, node.silence = answers[node.id]
        for node in (node for node in nodes if node.answers):
            try:
                node.offset, node.bound = _clock(examiners[node.id])
            except RayError as error:
                node.facts, node.silence = None, f"it was lost ({error})"
        if store is not None:
            _try_store([node for node in nodes if node.answers], examiners, store)
        _hear_gpus(nodes, gpus)
    finally:
        for examiner in examiners.values():
            ray.kill(examiner)


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def _gather(asked: Mapping[str, ray.ObjectRef], patience: float) -> dict[str, tuple[Any, str]]:
    """The answers that come in time, and why there are none of the others."""
    ready = set(ray.wait(list(asked.values()), num_returns=len(asked), timeout=patience)[0]) if asked else set()
    answers: dict[str, tuple[Any, str]] = {}
    for key, awaited in asked.items():
        if awaited not in ready:
            ray.cancel(awaited)
            answers[key] = None, f"no answer within {patience:g} s"
            continue
        try:
            answers[key] = ray.get(awaited), ""
        except RayError as error:
            answers[key] = None, str(error).strip().splitlines()[-1].strip()
    return answers


def _clock(examiner: Any) -> tuple[float, float]:
    """How far the node's clock is ahead, by the quickest of some calls, and half of what that call took: by so much the
    first may be off (Cristian 1989, "Probabilistic clock synchronization").
    """
    readings = []
    for _ in range(_CALLS):
        before = time.time()
        there = ray.get(examiner.time.remote(), timeout=PATIENCE)
        after = time.time()
        readings.append(((after - before) / 2, there - (before + after) / 2))
    bound, offset = min(readings)
    return offset, bound


def _try_store(nodes: Sequence[Node], examiners: Mapping[str, Any], store: Store) -> None:
    with marked(store) as token:
        asked = {node.id: examiners[node.id].answer.remote(store.location, token) for node in nodes}
        answers = _gather(asked, PATIENCE)
        for node in nodes:
            seen, node.store_trouble = answers[node.id]
            node.apart = not node.store_trouble and not (seen and answered(store, token, node.id))


def _ask_gpus(nodes: Sequence[Node]) -> dict[str, ray.ObjectRef]:
    counts = {node.id: (node, int(node.amount("GPU"))) for node in nodes if node.amount("GPU") >= 1}
    return {
        key: _use_gpus.options(name=f"GPUs of {node.name}", num_gpus=count, scheduling_strategy=_on(node)).remote(count)
        for key, (node, count) in counts.items()
    }


def _hear_gpus(nodes: Sequence[Node], asked: Mapping[str, ray.ObjectRef]) -> None:
    answers = _gather(asked, GPU_PATIENCE)
    for node in nodes:
        if node.id in answers and answers[node.id][0] is not None:
            node.gpus, node.gpu_trouble = answers[node.id][0]
        elif node.id in answers and not answers[node.id][1].startswith("no answer"):
            node.gpu_trouble = answers[node.id][1]
