"""Clusters that cannot be joined and a Ray that does not start: told in bounded time, with what to do."""

import os
import socket
import subprocess
import sys

import psutil
import pytest
import ray
from process_cases import listening

from raygeo.cluster.session import connect as connect_here
from raygeo.cluster.session import keep_token_private
from raygeo.errors import ClusterError

pytestmark = pytest.mark.cluster

SCRIPT = """
import sys
from raygeo.cluster import session
from raygeo.errors import ClusterError
session.ANSWER_SECONDS = 1
try:
    session.connect(sys.argv[1] or None, cpus=1)
except ClusterError as error:
    print("refused:", error)
"""


def connect(address, **environment):
    """What connecting to ``address`` in a process of its own says."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, address], env=os.environ | {"RAY_ADDRESS": ""} | environment,
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip


@pytest.fixture
def port():
    """A port where somebody listens and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_an_address_that_never_answers_is_refused(port):
    assert "refused: no Ray cluster answers at '127.0.0.1:" in connect(f"127.0.0.1:{port}")


def test_an_address_where_nobody_listens_is_refused():
    said = connect("127.0.0.1:1")
    assert "refused: no Ray cluster answers at '127.0.0.1:1' within 1 s" in said
    assert "`ray status`" in said


def test_an_address_that_is_none_is_refused():
    address = "http://127.0.0.1:8265"
    assert f"refused: the Ray cluster at {address!r} cannot be joined" in connect(address)


@pytest.mark.parametrize("named", [("ray://head:10001", {}), ("", {"RAY_ADDRESS": "ray://head:10001"})])
def test_rays_client_is_refused_before_it_is_asked(named):
    address, environment = named
    said = connect(address, **environment)
    assert "Ray's client (ray://head:10001) cannot lead a study" in said
    assert "ray job submit" in said


def test_a_ray_that_cannot_start_here_says_where_its_logs_are(tmp_path):
    (tmp_path / "file").write_text("")
    said = connect("", RAY_TMPDIR=str(tmp_path / "file"))
    assert "refused: Ray could not be started on this machine" in said
    assert "session_latest/logs" in said


def test_a_token_is_its_owners_alone(tmp_path):
    token = tmp_path / "auth_token"
    token.write_text("secret")
    for before in (0o644, 0o666, 0o600, 0o400):
        token.chmod(before)
        keep_token_private(token)
        assert token.stat().st_mode & 0o077 == 0
    keep_token_private(tmp_path / "none")


def test_an_embedded_cluster_listens_on_this_machine_alone(ray_session):
    ray_session.get(ray_session.remote(lambda: 1).remote())
    this = psutil.Process()
    found = listening([this, *this.children(recursive=True)])
    assert len(found) >= 5
    assert set(found) == {"127.0.0.1"}


def test_processes_of_an_embedded_cluster_know_it_among_several(ray_session):
    """Ray Train's own process asks for the state of actors so, to free what the workers of a dead one hold."""

    def state() -> tuple[str | None, str]:
        from ray.util.state import get_actor

        return os.environ.get("RAY_ADDRESS"), get_actor(actor._ray_actor_id.hex()).state

    class Idle:
        pass

    actor = ray_session.remote(num_cpus=0)(Idle).remote()
    ray_session.get(actor.__ray_ready__.remote())
    there = subprocess.Popen(
        [sys.executable, "-c", "from raygeo.cluster.session import connect; connect(cpus=1); print('up'); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"RAY_ADDRESS": ""},
    )  # fmt: skip
    with there:
        assert there.stdout.readline() == "up\n"
        address, found = ray_session.get(ray_session.remote(state).remote())
        there.communicate("\n")
    assert address == ray_session.get_runtime_context().gcs_address
    assert found == "ALIVE"
    assert not os.environ.get("RAY_ADDRESS")


@pytest.mark.parametrize(("said", "tries"), [("x is trying to use a port number 52365 that is used", 2), ("no", 1)])
def test_a_port_that_ray_has_drawn_twice_is_drawn_anew(monkeypatch, said, tries):
    asked = []

    def fails(**settings):
        asked.append(settings)
        raise ValueError(said)

    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ClusterError, match=said):
        connect_here(cpus=1)
    assert len(asked) == tries
    assert {each["_node_ip_address"] for each in asked} == {"127.0.0.1"}
