"""What a cluster can hold and what is said of it, without Ray running: its tables are given."""

import pytest
from pydantic import ValidationError

from raygeo.cluster import preflight, waiting
from raygeo.cluster.preflight import check_fits, count_fitting, is_autoscaled
from raygeo.cluster.settings import ActorSettings, demand, options
from raygeo.cluster.waiting import Waiting
from raygeo.errors import ClusterError

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of these nodes: a list that tests fill."""
    nodes = []
    tables = lambda: [{"Alive": alive, "Resources": has} for alive, has in nodes]  # noqa: E731
    monkeypatch.setattr(preflight.ray, "nodes", tables)
    monkeypatch.setattr(preflight, "is_autoscaler_v2", lambda: False)
    monkeypatch.setattr(preflight, "_internal_kv_get", lambda key: None)
    monkeypatch.setattr(preflight, "available_resources_per_node", lambda: {"a": {"CPU": 1.0}, "b": {}})
    return nodes


def test_bundles_are_counted_node_by_node_and_only_on_living_ones(cluster):
    cluster += [(True, {"CPU": 3}), (True, {"CPU": 1, "GPU": 2}), (False, {"CPU": 64})]
    assert count_fitting(demand(2, 0)) == 1
    assert count_fitting(demand(0.5, 0)) == 8
    assert count_fitting(demand(0.25, 0.5)) == 4


def test_a_kind_of_gpu_is_found_where_ray_names_it(cluster):
    cluster += [(True, {"CPU": 8, "GPU": 4, "accelerator_type:L4": 1}), (True, {"CPU": 8, "GPU": 1})]
    asked = ActorSettings(gpus=0.5, gpu_type="L4").demand
    assert count_fitting(asked) == 8
    assert options(asked) == {"num_cpus": 1, "num_gpus": 0.5, "resources": {"accelerator_type:L4": 0.001}}
    with pytest.raises(ClusterError, match=r"1 x \(1 CPU, 1 GPU, H100\)(.|\n)*8 CPU, 4 GPU, L4; 8 CPU, 1 GPU\)"):
        check_fits("an actor", demand(1, 1, "H100"))


def test_an_autoscaler_may_add_what_is_asked_for(cluster, monkeypatch):
    cluster.append((True, {"CPU": 0}))
    with pytest.raises(ClusterError, match=r"asks for 2 x \(1 CPU\), and the cluster can hold 0"):
        check_fits("a run", demand(1, 0), 2)
    for types, scaled in ((["node_0a1b"], False), (["head", "gpu"], True)):
        report = f'{{"autoscaler_report": {{"active_nodes": {{{", ".join(f""" "{kind}": 1""" for kind in types)}}}}}}}'
        monkeypatch.setattr(preflight, "_internal_kv_get", lambda key, report=report: report)
        assert is_autoscaled() is scaled
    check_fits("a run", demand(1, 0), 2)


@pytest.mark.parametrize("wrong", [{"gpus": 1.5}, {"gpu_type": "H100"}, {"gpus": -1}])
def test_gpus_that_ray_cannot_give_are_refused(wrong):
    with pytest.raises(ValidationError):
        ActorSettings(**wrong)


def test_waiting_is_told_now_and_then(cluster, monkeypatch):
    cluster += [(True, {"CPU": 2}), (True, {"CPU": 1})]
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    wait, said = Waiting(demand(1, 0)), []
    for seconds in range(0, 300, 10):
        now[0] = 100.0 + seconds
        if text := wait.note(2):
            said.append((seconds, text))
    assert [seconds for seconds, _ in said] == [30, 90, 210]
    assert said[1][1] == "waiting for 2 x 1 CPU for 90 s (cluster has 2 nodes, 3 CPU, 1 free)"
    wait.over()
    assert wait.note(2) is None


def test_where_there_is_room_it_is_the_start_that_is_waited_for(cluster, monkeypatch):
    cluster += [(True, {"CPU": 2}), (True, {"CPU": 1})]
    free = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}
    monkeypatch.setattr(preflight, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.0)
    said = "waiting for the start of 2 x 1 CPU for 0 s (cluster has 2 nodes, 3 CPU, 2 free)"
    assert Waiting(demand(1, 0)).note(2) == said
    assert Waiting(demand(1, 0)).note(3).startswith("waiting for 3 x 1 CPU for")
    assert Waiting(demand(2, 0)).note(1).startswith("waiting for 1 x 2 CPU for"), "no node has so many"
    assert Waiting(demand(1, 0)).note(2, without={"b"}).startswith("waiting for 2 x 1 CPU for")
