"""What a study would run on: a device named, this machine, or the cluster that Ray knows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from raygeo.cluster.machine import machine_cores, machine_memory
from raygeo.errors import ConfigError
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
    """The device named; else this machine's GPU; else, where the study asks for GPUs, one H100; else this CPU. ``gpus``
    are how many of them, by default all of this machine's, or one.

    Raises:
        ConfigError: ``device`` is no device, or there is nothing of which there could be so many ``gpus``.
    """
    machine, cores = machine_memory(), machine_cores()
    named = None if device is None else find_device(device, machine, cores)
    if gpus is not None:
        _refuse_idle(study, gpus, named)
    if named is not None and named.kind == "cpu":
        return Cluster(None, 0, machine, cores, "this machine's CPU")
    if named is not None:
        said = f"as named: {gpus or 1} x {named.name}, in a machine of {ELSEWHERE // GIB} GiB"
        return Cluster(named, gpus or 1, max(machine, ELSEWHERE), cores, said)
    if torch.cuda.is_available():
        count = gpus or torch.cuda.device_count()
        card = torch.cuda.get_device_properties(0)
        said = f"the GPUs of this machine: {count} x {card.name}"
        return Cluster(device_of_card(card.name, card.total_memory), count, machine, cores, said)
    if wants_gpu(study):
        said = (
            f"no GPU here: {gpus or 1} x h100 in a machine of {ELSEWHERE // GIB} GiB assumed (--device names another)"
        )
        return Cluster(DEVICES["h100"], gpus or 1, max(machine, ELSEWHERE), cores, said)
    return Cluster(None, 0, machine, cores, "this machine's CPU")


def _refuse_idle(study: Study, gpus: int, named: Device | None) -> None:
    """Raise ``ConfigError`` where so many ``gpus`` are none, or would have nothing to do."""
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus}: give 1 or more, or leave it out.")
    if named is not None and named.kind == "cpu":
        raise ConfigError(f"--gpus {gpus} counts GPUs, and --device {named.name} has none; leave one of the two out.")
    if not wants_gpu(study):
        raise ConfigError(
            f"--gpus {gpus}: no stage of the study asks for GPUs, so they would be idle; let runs and actors have "
            "them, as in --set training.gpus=1 --set actors.gpus=1, or leave --gpus out."
        )


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
