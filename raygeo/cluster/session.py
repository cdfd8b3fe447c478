"""Connecting to Ray: the cluster a job was submitted to, one named by the user, or an embedded one on this machine."""

import logging
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import ray_constants

from raygeo.errors import ClusterError
from raygeo.interrupts import install
from raygeo.plugins import FOLDERS

ANSWER_SECONDS = 30.0

_LOOPBACK = "127.0.0.1"
"""The address that everything of an embedded cluster listens on, and nobody else can reach."""
_CLIENT = "ray://"
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
        ClusterError: the named cluster does not answer or refuses the connection, or Ray does not start here; or it is
            to be reached through Ray's client.
    """
    named = address or os.environ.get("RAY_ADDRESS") or ""
    if ray.util.client.ray.is_connected() or (named.startswith(_CLIENT) and not ray.is_initialized()):
        raise ClusterError(
            f"Ray's client ({named if named.startswith(_CLIENT) else _CLIENT}) cannot lead a study: that takes a "
            "process inside the cluster. Submit it as a job (`ray job submit --address http://HEAD:8265 --working-dir "
            ". -- python jobs/study.py STUDY --store STORE`), or run the command on a machine of the cluster with "
            "--address auto."
        )
    if ray.is_initialized():
        return
    try:
        _connect(address, cpus)
    finally:
        install()  # Ray has set a handler for SIGTERM


def _connect(address: str | None, cpus: int | None) -> None:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune would print over our progress
    named = address or os.environ.get("RAY_ADDRESS")
    if named and named != "local":  # Ray's word for one that it starts here
        _check_answers(named)
        try:
            found = {"runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(FOLDERS)}}}
            own: dict[str, Any] = found if FOLDERS else {}
            ray.init(address=named, log_to_driver=False, logging_level=logging.WARNING, **own)
        except Exception as error:  # Ray raises bare ones too
            raise ClusterError(
                f"the Ray cluster at {named!r} cannot be joined: {error}\nCheck, with `ray status` on the cluster, "
                "that it is up and of this version of Ray, and that this process has its token (RAY_AUTH_MODE as it is "
                "set there, the token in RAY_AUTH_TOKEN or its file in RAY_AUTH_TOKEN_PATH)."
            ) from error
        return
    # Workers of an embedded cluster inherit these; a running cluster keeps what its nodes were started with.
    for name, value in _EMBEDDED.items():
        os.environ.setdefault(name, value)
    try:
        try:
            _embed(cpus)
        except ValueError as error:
            if "port number" not in str(error):
                raise
            ray.shutdown()
            _embed(cpus)  # Ray had drawn a port at random that another part of it has by default
    except Exception as error:
        ray.shutdown()
        if "timed out" in str(error):
            raise ClusterError(
                "Ray did not start in time on this machine, which seems to be busy: run the same command again later, "
                "or start Ray beforehand (`ray start --head`) and give --address auto."
            ) from error
        raise ClusterError(
            f"Ray could not be started on this machine: {error}\nIts logs are in {tempfile.gettempdir()}/ray/"
            "session_latest/logs. On a busy machine the same command may do better later; see also that /tmp has space "
            "and that no proxy or firewall stands between a machine and itself. Or start Ray (`ray start --head`) and "
            "name it: --address auto."
        ) from error
    keep_token_private()


def _embed(cpus: int | None) -> None:
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(_is_worth_telling)
    with _alone(), _addressed():
        ray.init(
            address="local",
            num_cpus=cpus,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address=_LOOPBACK,
        )


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Whether Ray warns of something: that its token protects the cluster is as it should be."""
    return not record.getMessage().startswith("Token authentication is enabled")


def keep_token_private(file: Path | None = None) -> None:
    """Let nobody else read the token that Ray has written into this user's home, which it writes for all to read."""
    file = file or Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            file.chmod(0o600)


@contextmanager
def _alone() -> Iterator[None]:
    """Let Ray take the loopback address for a node's, on which alone its servers then listen.

    It puts the machine's own in its place unless it thinks that machines of this kind form no clusters.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _addressed() -> Iterator[None]:
    """Let the processes of the cluster that is started meanwhile find its address in their environment.

    Ray looks for it among all that run on the machine, and gives up where there are several: what frees the CPUs of
    workers whose steering actor died then never does.
    """
    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        port = str(free.getsockname()[1])
    known = {"RAY_ADDRESS": f"{_LOOPBACK}:{port}", ray_constants.GCS_PORT_ENVIRONMENT_VARIABLE: port}
    before = {name: os.environ.get(name) for name in known}
    os.environ.update(known)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_answers(address: str) -> None:
    """See that something at ``host:port`` speaks gRPC, as Ray's head does: ray.init waits for minutes.

    Raises:
        ClusterError: nothing answers.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit() or os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise ClusterError(
                f"no Ray cluster answers at {address!r} within {ANSWER_SECONDS:g} s. Check that the address is that of "
                "the head (host:port, 6379 unless it was started with another), that the head is up (`ray status` "
                "there), and that this machine can reach it."
            ) from None
