"""Where ranks meet: at one address of a machine, through an interface that has it."""

import socket
from datetime import timedelta
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch.distributed as dist
from ray.exceptions import ActorDiedError

from raygeo.errors import LostProcessError
from raygeo.training.rendezvous import interfaces, meeting, serve

pytestmark = pytest.mark.cluster

PATIENCE = timedelta(seconds=20)


def addresses():
    found = psutil.net_if_addrs().items()
    return {each.address: name for name, given in found for each in given if each.family == socket.AF_INET}


def opened(port):
    mine = psutil.Process().net_connections("tcp")
    return [each.laddr.ip for each in mine if each.laddr.port == port and each.status == psutil.CONN_LISTEN]


@pytest.mark.parametrize("address", addresses())
def test_ranks_meet_at_the_address_of_a_node_alone(monkeypatch, address):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    where, port = serve(2, PATIENCE)
    assert where == address
    assert opened(port) == [address]
    other = dist.TCPStore(where, port, 2, timeout=PATIENCE)
    other.set("said", "here")
    assert dist.TCPStore(where, port, 2, timeout=PATIENCE).get("said") == b"here"


def test_an_address_that_no_interface_has_is_served_on_all(monkeypatch):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    _, port = serve(1, PATIENCE)
    assert opened(port) == ["0.0.0.0"]


def test_workers_speak_over_what_they_have_whatever_torch_was_built_for():
    assert (meeting(0, None).backend, meeting(0.5, None).backend) == ("gloo", "nccl")


def test_gloo_is_told_of_no_interface_whose_first_address_is_another(monkeypatch):
    loopback = [SimpleNamespace(address=address, family=socket.AF_INET) for address in ("127.0.0.1", "10.9.8.7")]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"lo": loopback})
    assert set(interfaces("127.0.0.1").values()) == {"lo"}
    assert interfaces("10.9.8.7") == {}


def test_gloo_takes_the_interface_that_has_the_address_and_nccl_that_of_a_lone_machine():
    assert interfaces("127.0.0.1") == dict.fromkeys(
        ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), addresses()["127.0.0.1"]
    )
    for address, name in addresses().items():
        if not address.startswith("127."):
            assert interfaces(address) == {"GLOO_SOCKET_IFNAME": name}
    assert interfaces("198.51.100.7") == {}


class Lost:
    """A group of one worker, which dies at the first thing it is asked."""

    held = True

    def __len__(self):
        return 1

    def execute(self, function):
        raise ActorDiedError

    def shutdown(self):
        self.held = False


def test_a_worker_that_dies_before_it_could_begin_ends_its_group_and_frees_its_place():
    group = Lost()
    with pytest.raises(LostProcessError, match="a worker died before it could begin: The actor died"):
        meeting(0, None).backend_cls().on_start(group, meeting(0, None))
    assert not group.held
