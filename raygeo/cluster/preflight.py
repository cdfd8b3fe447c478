"""What the cluster can hold: checked before anything is asked of it, because Ray would wait for ever."""

import ray

from raygeo.errors import ClusterError


def count_fitting(demand: dict[str, float]) -> int:
    """How many bundles of ``demand`` (resource name to amount) the living nodes can hold at once, node by node."""
    wanted = {name: amount for name, amount in demand.items() if amount > 0}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        min((int(node.get(name, 0) / amount + 1e-9) for name, amount in wanted.items()), default=0) for node in nodes
    )


def check_fits(what: str, demand: dict[str, float], count: int = 1) -> None:
    """Refuse a request that the cluster can never place.

    Raises:
        ClusterError: naming what is asked, what the largest node has, and what to change.
    """
    fitting = count_fitting(demand)
    if fitting >= count:
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = ", ".join(f"{amount:g} {name}" for name, amount in demand.items() if amount > 0)
    offered = "; ".join(
        ", ".join(f"{node.get(name, 0):g} {name}" for name, amount in demand.items() if amount > 0) for node in nodes
    )
    raise ClusterError(
        f"{what} asks for {count} x ({asked}), and the cluster can hold {fitting} of them at once "
        f"({len(nodes)} node(s): {offered}). Ask for less in the study file, or add nodes."
    )
