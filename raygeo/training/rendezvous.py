"""Where the workers of a run meet: at a port of one node's own address, as all else of a cluster listens.

PyTorch by itself opens that port on all addresses of a machine, and gloo listens wherever its host's name leads.
"""

import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig

from raygeo.errors import LostProcessError

_BACKLOG = 1024
_opened: dict[int, dist.TCPStore] = {}
"""By port, the stores that this process serves."""


@dataclass
class Meeting(TorchConfig):
    """Ray Train's configuration of PyTorch, with workers that meet at their nodes' own addresses.

    The ``coordinator`` is told the place of their group on the cluster.
    """

    coordinator: Any = None

    @property
    def backend_cls(self) -> type:
        """What sets the process group up."""
        return _Meet


def meeting(gpus: float, coordinator: Any) -> Meeting:
    """Workers with so many GPUs each, which speak over NCCL, or without, over gloo.

    It is named, since PyTorch would choose by what it was built for and not by what a worker has.
    """
    return Meeting(backend="nccl" if gpus > 0 else "gloo", coordinator=coordinator)


class _Meet(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Meeting) -> None:
        """Let every worker load what it trains with, rank 0 open the store, and all ranks form the process group
        over it.

        Ray Train restarts a group without limit when its workers die here, or fail later but before they have asked for
        a run. What this raises ends the group instead, and counts as one of the run's restarts. Ray Train would keep
        the place of such a group: it is given back here, and the coordinator is told it in case that the group ends
        between here and its work.

        Raises:
            LostProcessError: a worker died.
        """
        size, patience = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        try:
            worker_group.execute(_load)
            address, port = worker_group.execute_single(0, serve, size, patience)
            group = (backend_config.backend, address, port, size, patience)
            ray.get([worker_group.execute_single_async(rank, _join, rank, *group) for rank in range(size)])
            place = worker_group.get_worker_group_state().placement_group_handle.placement_group
            ray.get(backend_config.coordinator.placed.remote(place))
        except Exception as error:
            worker_group.shutdown()
            if isinstance(error, RayActorError):
                raise LostProcessError(f"a worker died before it could begin: {str(error).splitlines()[0]}") from error
            raise


def _load() -> None:
    import raygeo.training.worker  # noqa: F401


def serve(size: int, patience: timedelta) -> tuple[str, int]:
    """Open a store for so many workers at a free port of this node's address, and return both.

    An address that is another machine's, which passes on what comes there, cannot be listened on: then it is all.
    """
    address = ray.util.get_node_ip_address()
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.bind((address if address in _own_addresses() else "", 0))
    listener.listen(_BACKLOG)
    port = listener.getsockname()[1]
    _opened[port] = dist.TCPStore(
        address, port, size, is_master=True, timeout=patience, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    return address, port


def _own_addresses() -> set[str]:
    return {one.address for given in psutil.net_if_addrs().values() for one in given}


def _join(rank: int, backend: str, address: str, port: int, size: int, patience: timedelta) -> None:
    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # an error ends the process, as Ray Train expects
    for name, value in interfaces(ray.util.get_node_ip_address()).items():
        os.environ.setdefault(name, value)
    store = _opened.get(port) if rank == 0 else None
    store = store or dist.TCPStore(address, port, size, timeout=patience)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)


def interfaces(address: str) -> dict[str, str]:
    """Variables that have gloo listen at a node's address, and NCCL too where that is the loopback.

    Elsewhere NCCL looks for the fastest interface itself. None where no interface has that address first: gloo listens
    at the first one of an interface.
    """
    for name, given in psutil.net_if_addrs().items():
        if address == next((one.address for one in given if one.family in (socket.AF_INET, socket.AF_INET6)), None):
            backends = ("GLOO", "NCCL") if ipaddress.ip_address(address).is_loopback else ("GLOO",)
            return {f"{backend}_SOCKET_IFNAME": name for backend in backends}
    return {}
