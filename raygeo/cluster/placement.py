"""Where what steers the others is placed: on the node of whoever starts it, as it is of no use without that."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_me() -> dict[str, Any]:
    """Options of an actor that takes no CPU and lives on this process's node, where it is started anew if it dies.

    Calls that it had not answered raise ``RayActorError``, and what it knew is lost.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1}
