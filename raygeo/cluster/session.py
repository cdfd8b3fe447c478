"""Connecting to Ray: the cluster a job was submitted to, one named by the user, or an embedded one on this machine."""

import logging
import os

import ray


def connect(address: str | None = None, cpus: int | None = None) -> None:
    """Connect this process to Ray unless it is already connected.

    ``address`` (or ``RAY_ADDRESS``, which ``ray job submit`` sets) names a running cluster; without one Ray is started
    inside this process for its lifetime, on this machine only, with ``cpus`` CPUs (by default all).
    """
    if ray.is_initialized():
        return
    # Workers of an embedded cluster inherit these; a running cluster keeps what its nodes were started with.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune would print over our progress
    named = address or os.environ.get("RAY_ADDRESS")
    if named:
        ray.init(address=named, log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.WARNING)
