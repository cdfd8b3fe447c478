"""What a study would run on: a device named, this machine, or the cluster that Ray knows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from raygeo.cluster.machine import machine_cores, machine_memory
from raygeo.footprint.devices import DEVICES, GIB, Device, cpu, device_of_card, find_device
from raygeo.footprint.need import Need
from raygeo.pipeline.config import Study

ELSEWHERE = 2**40
"""Bytes of memory that a machine with cards which are not here is assumed to have."""


@dataclass(frozen=True)
class Cluster:
    """``gpu`` is its kind of GPU; ``gpus`` how many it has; ``machine`` and ``cores`` are bytes of memory of one node,
    of those with GPUs where there are any, and cores. ``said`` is how that is known; ``host`` are bytes of memory of a
    node that computes on CPUs, where they are not those of ``machine``; ``nodes`` is how many there are.
    """

    gpu: Device | None
    gpus: int
    machine: int
    cores: int
    said: str
    host: int | None = None
    nodes: int = 1

    def place(self, study: Study, need: Need) -> tuple[Device, int]:
        """The device of one process of a need, and how many units of it can run at once.

        A student that is divided by ``student.device_map`` has the memory of all GPUs of its actor.
        """
        gpus, cores = _resources(study, need)
        if need.on != "cpu" and gpus > 0 and self.gpu is not None:
            at_once = int(self.gpus / (gpus * need.processes) + 1e-9)
            divided = need.on == "actors" and study.student.device_map is not None
            device = replace(self.gpu, memory=int(self.gpu.memory * (gpus if divided else min(1.0, gpus))))
        else:
            at_once = int(self.cores / (cores * need.processes) + 1e-9)
            device = cpu(self.host or self.machine, cores)
        most = study.actors.max_actors if need.on != "training" else None
        return device, max(1, min(at_once, need.units, most or at_once))


def _resources(study: Study, need: Need) -> tuple[float, float]:
    """GPUs and CPUs of one process."""
    if need.on == "training":
        largest = max((spec.training for spec in study.plan.points()), key=lambda training: training.gpus)
        return largest.gpus, largest.cpus
    return study.actors.gpus, study.actors.cpus


def wants_gpu(study: Study) -> bool:
    """Whether any stage asks for GPUs."""
    return study.actors.gpus > 0 or any(spec.training.gpus > 0 for spec in study.plan.points())


def cluster_at_hand(study: Study, device: str | None = None, gpus: int | None = None) -> Cluster:
    """The device named; else this machine's GPU; else, where the study asks for GPUs, one H100; else this CPU.

    Raises:
        ConfigError: ``device`` is no device.
    """
    machine, cores = machine_memory(), machine_cores()
    if device is not None:
        found = find_device(device, machine, cores)
        if found.kind == "cpu":
            return Cluster(None, 0, machine, cores, "this machine's CPU")
        said = f"as named: {gpus or 1} x {found.name}, in a machine of {ELSEWHERE // GIB} GiB"
        return Cluster(found, gpus or 1, max(machine, ELSEWHERE), cores, said)
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        card = torch.cuda.get_device_properties(0)
        return Cluster(
            device_of_card(card.name, card.total_memory), gpus or count, machine, cores, "the GPUs of this machine"
        )
    if wants_gpu(study):
        said = f"no GPU here: an H100 in a machine of {ELSEWHERE // GIB} GiB assumed (--device names another)"
        return Cluster(DEVICES["h100"], gpus or 1, max(machine, ELSEWHERE), cores, said)
    return Cluster(None, 0, machine, cores, "this machine's CPU")


def cluster_connected(study: Study) -> Cluster | None:
    """The cluster that this process is connected to: its largest card, asked of a node, where GPUs are wanted, and its
    largest node. None where GPUs are wanted and no card answers in time, or Ray does not know the nodes' memory:
    nothing can then be said of what fits.
    """
    import ray

    from raygeo.cluster.probe import cards, largest_memory

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    here = machine_memory() if len(nodes) == 1 else 0
    host = max(largest_memory("CPU") or 0, here)
    if not host:
        return None
    cores = int(sum(node.get("CPU", 0) for node in nodes))
    if not wants_gpu(study):
        return Cluster(None, 0, host, cores, "the cluster's CPUs", nodes=len(nodes))
    found, beside = cards(), max(largest_memory("GPU") or 0, here)
    if not found or not beside:
        return None
    largest = max(found, key=lambda card: card.memory)
    count = sum(card.number for card in found)
    said = f"the cluster's cards: {', '.join(f'{card.number} x {card.name}' for card in found)}"
    return Cluster(device_of_card(largest.name, largest.memory), count, beside, cores, said, host, len(nodes))
