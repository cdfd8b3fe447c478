"""Work over several machines: the rows of one machine, and machines that are lost, join, or do not see the store."""

import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from nodes.drive import TABLE
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from study_cases import draw_rollouts, tiny_study
from tiny import save_tiny_student

from checks.machines import HEAD, Machines, why_not
from raygeo.analyses.registry import analyses
from raygeo.models.delta import open_delta
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.study import run_study
from raygeo.store import Store

REASON = why_not()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]

QUIET = dict.fromkeys(analyses()) | {"norms": {}}
SOON = {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "1000"}  # fmt: skip
"""Ray's patience with a machine that is silent, by default about a minute."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model in a cache, and rollouts."""
    folder = tmp_path_factory.mktemp("given")
    save_tiny_student(folder / "cache" / "student")
    pq.write_table(draw_rollouts(30), folder / "rollouts.parquet")
    return folder


@pytest.fixture(scope="module")
def machines(given):
    """A head without CPUs, and two machines with one each, neither of which sees the cache; one says it has GPUs."""
    with Machines(hidden=(str(given / "cache"),)) as machines:
        machines.head("--num-cpus=0", **SOON)
        machines.add("--num-cpus=1")
        machines.add("--num-cpus=1", "--num-gpus=2")
        yield machines


def wait_for(seen, process):
    """Wait until ``seen()`` is true while a process runs."""
    while not seen():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def study_over(given, store):
    rollouts = {"read": [{"type": "parquet", "path": str(given / "rollouts.parquet")}], "heldout": 0.3}
    training = {"steps": 60, "checkpoint_every": 10, "batch_size": 8, "lr": 1e-3, "log_every": 2, "workers": 2}
    return tiny_study(
        student={"model": str(given / "cache" / "student")}, rollouts=rollouts, training=training | {"cpus": 0.9},
        geometry=QUIET, evaluation={"heldout": False}, store=str(store),
    )  # fmt: skip


def begin(study, machines, folder):
    """Start the command for a study on the head."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return machines.made[0].python("-m", "raygeo", "run", str(file), RAY_ADDRESS=HEAD)


def test_a_store_that_not_all_machines_see_and_gpus_that_are_not_there_are_refused(machines, given, tmp_path):
    study = study_over(given, tmp_path / "store") | {"actors": {"gpus": 1}}
    with machines.made[2].without(tmp_path):
        said, _ = begin(study, machines, tmp_path).communicate(timeout=200)
    assert f"node 10.77.0.3 does not see the store at {tmp_path}/store as this command does" in said
    assert "node 10.77.0.3 offers 2 GPU to Ray, and torch" in said
    assert "node 10.77.0.2" not in said
    assert "Traceback" not in said


def test_a_study_over_two_machines_of_which_one_is_lost_has_the_rows_of_one(machines, given, tmp_path, ray_session):
    driver = begin(study_over(given, tmp_path / "two"), machines, tmp_path)
    wait_for(lambda: list(tmp_path.glob("two/checkpoints/*/_COMPLETE")), driver)
    ranks = [machine.listening("RayTrainWo") for machine in machines.made[1:3]]
    assert all(found.count("*") <= 1 for found in ranks), "Ray's own worker, and no store"
    assert [set(found) - {"*"} for found in ranks] == [{machine.address} for machine in machines.made[1:3]]
    assert sorted(map(len, ranks)) == sorted({len(ranks[0]), len(ranks[1])}), "one of them has the store besides"
    machines.lose(3)
    machines.add("--num-cpus=1")
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert "resumes from its last checkpoint" in said
    run_study(parse_study(study_over(given, tmp_path / "one")))
    one, other = (Store(str(tmp_path / name), create=False) for name in ("one", "two"))
    [key] = one.table("runs")["key"].to_pylist()
    weights, again = (open_delta(store.path("deltas", key)) for store in (one, other))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name].dense(), again[name].dense()) for name in weights)
    for table in ("rollouts", "deltas", "training_curves"):
        assert other.table(table).equals(one.table(table)), table
    assert not [file for file in Path(other.path("students")).rglob("*") if file.is_symlink()]


def test_tasks_go_on_where_there_are_machines(machines, tmp_path):
    def hosts():
        keys = sorted(store.units("hosts"))
        return [host for unit in store.read_units("hosts", keys, TABLE) for host in unit["host"].to_pylist()]

    store, count = Store(tmp_path / "store"), 60
    (*_, first, second) = machines.living()
    driver = machines.made[0].python("tests/nodes/drive.py", store.location, str(count), RAY_ADDRESS=HEAD)
    wait_for(lambda: {first.name, second.name} <= set(hosts()), driver)
    machines.lose(first.number)
    blind = machines.add("--num-cpus=1", hidden=(str(tmp_path),))
    before = hosts().count(second.name)
    wait_for(lambda: hosts().count(second.name) > before + 3, driver)
    machines.lose(second.number)
    third = machines.add("--num-cpus=1", after=8)
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    found = hosts()
    assert len(found) == count
    assert set(found) == {first.name, second.name, third.name}
    assert f"node {blind.address} does not see the store at {store.location}" in said
    assert "hosts: waiting for 1 x 1 CPU for" in said


SCALED = {
    "cluster_name": "scaled",
    "max_workers": 2,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
} | {
    commands: []
    for commands in (
        "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands",
    )
}  # fmt: skip
"""An autoscaler whose nodes are processes on its own machine."""


SECOND = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "RAY_NODE_TYPE_NAME": "ray.head.default",
}
"""What makes the head's autoscaler the second version, and the head one of the nodes that it has started, as ``ray up``
and KubeRay do."""
EXTERNAL = {
    "type": "external",  # the defaults of fake_multinode, which this version reads, are in no package
    "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
    "launch_multiple": True,
    "head_node_id": FAKE_HEAD_NODE_ID,
}


@pytest.mark.parametrize(("version", "provider"), [({}, {}), (SECOND, EXTERNAL)], ids=["v1", "v2"])
def test_a_cluster_without_workers_is_asked_for_nodes(tmp_path, version, provider):
    config, store = tmp_path / "scaled.yaml", Store(tmp_path / "store")
    config.write_text(yaml.safe_dump(SCALED | {"provider": SCALED["provider"] | provider}))
    with Machines() as machines:
        soon = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"} | version
        head = machines.head("--num-cpus=0", f"--autoscaling-config={config}", **soon)
        driver = head.python("tests/nodes/drive.py", store.location, "4", RAY_ADDRESS=HEAD)
        said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert len(store.units("hosts")) == 4
