"""What is asked of every node before work starts: whether it sees the store, and has the cards that it offers."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygeo.cluster.preflight import is_autoscaled
from raygeo.errors import ClusterError, RaygeoError
from raygeo.store import Store

PATIENCE = 60.0
"""Seconds that nodes may take to answer: one that is busy starts processes slowly."""
_SEEN_SECONDS = 10.0
"""How long a shared file system may take to show what another node has written."""
SCRATCH = "scratch"
"""Where marks are kept in a store."""
_COUNT = "import torch; print(torch.cuda.device_count(), torch.__version__)"
_SHARE = "Give a file system that all nodes mount at the same place, or a URI, with --store."


def are_several() -> bool:
    """Whether the cluster, if this process is connected to one, has several nodes, or an autoscaler to start some."""
    return ray.is_initialized() and (sum(node["Alive"] for node in ray.nodes()) > 1 or is_autoscaled())


def check_nodes(store: Store, *, gpus: bool, say: Callable[[str], None]) -> None:
    """See that every living node reads and writes the store of this process, and, where ``gpus`` are wanted, that torch
    finds the cards that the node offers to Ray.

    Nodes that do not answer in time are named.

    Raises:
        ClusterError: naming the nodes on which something is wrong, and what.
    """
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if len(nodes) == 1 and not gpus:
        return
    wrong = []
    with marked(store) as token:
        offered = {node: nodes[node]["Resources"].get("GPU", 0) if gpus else 0 for node in nodes}
        asked = {node: _ask(node, _look, store.location, token, offered[node] > 0) for node in nodes}
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE)
        for node, answer in asked.items():
            name = f"node {nodes[node]['NodeManagerAddress']}"
            try:
                seen, cards, torch = ray.get(answer, timeout=0)
            except GetTimeoutError:
                ray.cancel(answer)
                say(f"  {name} has not answered within {PATIENCE:g} s: whether it sees the store is not known")
            except (RayError, RaygeoError) as error:
                wrong.append(f"{name}: {getattr(error, 'cause', None) or error}")
            else:
                if not (seen and answered(store, token, node)):
                    wrong.append(unseen(node, store))
                if cards < offered[node]:
                    wrong.append(
                        f"{name} offers {offered[node]:g} GPU to Ray, and torch {torch} finds {cards} there. Start its "
                        f"Ray with --num-gpus={cards}, or see to its driver and to a torch that is built for it."
                    )
    if wrong:
        raise ClusterError("\n".join(wrong))


@contextmanager
def marked(store: Store) -> Iterator[str]:
    """Keep a mark in the store, by whose token other nodes can tell that they see the same one."""
    token = uuid.uuid4().hex
    store.write_bytes(f"{SCRATCH}/{token}/here", token.encode())
    try:
        yield token
    finally:
        store.delete_folder(SCRATCH, token)


def sees(location: str, token: str) -> bool:
    """Whether the store at ``location`` is, on this node, the one that is marked with ``token``."""
    try:
        return _shows(Store(location, create=False), f"{SCRATCH}/{token}/here")
    except OSError:  # there is none, or this node may not read it
        return False


def answer(location: str, token: str) -> bool:
    """Whether the store at ``location`` is, on this node, the one marked with ``token``, which is then marked
    by the node too.
    """
    seen = sees(location, token)
    if seen:
        node = ray.get_runtime_context().get_node_id()
        Store(location, create=False).write_bytes(f"{SCRATCH}/{token}/{node}", token.encode())
    return seen


def answered(store: Store, token: str, node: str) -> bool:
    """Whether the answer of a node, given its id, is seen here."""
    return _shows(store, f"{SCRATCH}/{token}/{node}")


def unseen(node: str, store: Store) -> str:
    """That a node, given its id, does not see the store, and what to do."""
    [address] = [known["NodeManagerAddress"] for known in ray.nodes() if known["NodeID"] == node]
    return f"node {address} does not see the store at {store.location} as this command does. {_SHARE}"


def _shows(store: Store, name: str) -> bool:
    until = time.monotonic() + _SEEN_SECONDS
    while store.read_bytes(name) is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _look(location: str, token: str, cards: bool) -> tuple[bool, int, str]:
    """On a node: look for the mark, write an answer, and count the cards that torch finds."""
    seen = answer(location, token)
    if not cards:
        return seen, 0, ""
    plain = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}  # Ray empties it
    counted = subprocess.run([sys.executable, "-c", _COUNT], env=plain, capture_output=True, text=True, check=True)
    count, torch = counted.stdout.split()
    return seen, int(count), torch


def _ask(node: str, function: Callable[..., Any], *arguments: Any) -> ray.ObjectRef:
    """Call a function on a node, whatever runs there."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(function)
    return task.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*arguments)
