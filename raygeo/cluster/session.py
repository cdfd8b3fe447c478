"""Connecting to Ray: the cluster a job was submitted to, one named by the user, or an embedded one on this machine."""

import logging
import os

import ray

from raygeo.errors import ClusterError

_EMBEDDED = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a run's end is noticed at a health check
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one machine cannot lose a node, and the watcher is a process a run
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def connect(address: str | None = None, cpus: int | None = None) -> None:
    """Connect this process to Ray unless it is already connected.

    ``address`` (or ``RAY_ADDRESS``, which ``ray job submit`` sets) names a running cluster; without one Ray is started
    inside this process for its lifetime, on this machine only, with ``cpus`` CPUs (by default all).

    Raises:
        ClusterError: the named cluster does not answer or refuses the connection.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune would print over our progress
    named = address or os.environ.get("RAY_ADDRESS")
    if named:
        try:
            ray.init(address=named, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f"the Ray cluster at {named!r} cannot be joined: {error}") from error
        return
    # Workers of an embedded cluster inherit these; a running cluster keeps what its nodes were started with.
    for name, value in _EMBEDDED.items():
        os.environ.setdefault(name, value)
    ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.WARNING)
