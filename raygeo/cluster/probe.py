"""What the nodes of a cluster have: their memory, and their graphics cards, asked of the nodes themselves."""

from typing import NamedTuple

import ray
from ray.exceptions import RayError

PATIENCE = 15.0
"""Seconds that an answer is waited for."""
_KIND = "accelerator_type:"


class Card(NamedTuple):
    """A kind of graphics card: its name, bytes of memory, and how many there are."""

    name: str
    memory: int
    number: int


def cards() -> list[Card]:
    """The kinds of cards of the living nodes; none where the cluster has none, or none answers in time."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    kinds: dict[str, int] = {}
    for node in nodes:
        kind = next((name for name in node if name.startswith(_KIND)), "")
        kinds[kind] = kinds.get(kind, 0) + int(node["GPU"])
    asked = [_card.options(resources={kind: 0.001} if kind else {}).remote() for kind in kinds]
    try:
        answers = ray.get(asked, timeout=PATIENCE) if asked else []
    except RayError:  # all of them are at work, or the node that was asked has gone
        for answer in asked:
            ray.cancel(answer)
        return []
    return [Card(name, memory, number) for (name, memory), number in zip(answers, kinds.values(), strict=True)]


def largest_memory(resource: str) -> int | None:
    """Bytes of memory of the largest living node that has any of ``resource``, as far as Ray knows: it offers tasks
    70 % of a node's. None where it does not know them all.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)]
    known = [node.get("memory") for node in nodes]
    return int(max(known) / 0.7) if known and all(known) else None


@ray.remote(num_gpus=1, num_cpus=0, max_retries=0)
def _card() -> tuple[str, int]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory
