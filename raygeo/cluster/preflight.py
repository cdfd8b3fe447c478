"""What the cluster can hold: checked before anything is asked of it, because Ray would wait for ever."""

import json
import re
from collections.abc import Collection, Iterable, Mapping

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import available_resources_per_node
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from raygeo.errors import ClusterError

_KIND = "accelerator_type:"
_UNMANAGED = re.compile(r"(node_[0-9a-f]+)?")
"""What Ray calls the type of a node that no autoscaler has started."""


def living_nodes(without: Collection[str] = ()) -> list[dict[str, float]]:
    """The resources of every living node, ``without`` those with some ids."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node.get("NodeID") not in without]


def free_resources(without: Collection[str] = ()) -> list[dict[str, float]]:
    """What nobody has taken of every living node, ``without`` those with some ids."""
    return [free for node, free in available_resources_per_node().items() if node not in without]


def count_fitting(demand: Mapping[str, float], without: Collection[str] = ()) -> int:
    """How many bundles of ``demand`` (resource name to amount) the living nodes can hold at once, node by node.

    Nodes with an id in ``without`` do not count.
    """
    return count_within(living_nodes(without), demand)


def count_within(nodes: Iterable[Mapping[str, float]], demand: Mapping[str, float]) -> int:
    """How many bundles of ``demand`` there are in ``nodes``, each with its resources."""
    wanted = {name: amount for name, amount in demand.items() if amount > 0}
    return sum(
        min((int(node.get(name, 0) / amount + 1e-9) for name, amount in wanted.items()), default=0) for node in nodes
    )


def is_autoscaled() -> bool:
    """Whether an autoscaler starts nodes for what is asked of the cluster, as far as it has reported its nodes.

    Where Ray was started by hand it mirrors the nodes there are, each as a type of its own.
    """
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        types = {node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes, *status.pending_nodes)}
    else:
        report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
        types = set(report.get("active_nodes", ()))
    return any(_UNMANAGED.fullmatch(kind) is None for kind in types)


def check_fits(what: str, demand: Mapping[str, float], count: int = 1) -> None:
    """Refuse a request that the cluster can never place; one with an autoscaler may grow, and is refused nothing.

    Raises:
        ClusterError: naming what is asked, what the largest node has, and what to change.
    """
    fitting = count_fitting(demand)
    if fitting >= count or is_autoscaled():
        return
    nodes = living_nodes()
    offered = "; ".join(_offered(node, demand) for node in nodes)
    raise ClusterError(
        f"{what} asks for {count} x ({listed_resources(demand)}), and the cluster can hold {fitting} of them at once "
        f"({len(nodes)} node(s): {offered}). Ask for less in the study file, or add nodes."
    )


def listed_resources(demand: Mapping[str, float]) -> str:
    """Amounts of resources in words, with kinds of GPUs by their names."""
    return ", ".join(
        name.removeprefix(_KIND) if _KIND in name else f"{amount:g} {name}"
        for name, amount in demand.items()
        if amount > 0
    )


def _offered(node: Mapping[str, float], demand: Mapping[str, float]) -> str:
    """What a node has of the resources asked for, and its kinds of GPUs."""
    amounts = [f"{node.get(name, 0):g} {name}" for name, amount in demand.items() if amount > 0 and _KIND not in name]
    return ", ".join([*amounts, *(name.removeprefix(_KIND) for name in node if _KIND in name)])
