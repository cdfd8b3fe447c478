"""``cluster.yaml`` is valid by Ray's own schema, and means what docs/cluster.md says of it."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from raygeo.pipeline.config import load_study

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]
SHARED = "/mnt/raygeo"


@pytest.fixture(scope="module")
def cluster() -> dict:
    """The file as ``ray up`` reads it, Ray's defaults filled in."""
    return prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def workers(cluster) -> dict:
    return {name: node for name, node in cluster["available_node_types"].items() if name != "head"}


def option(words: list[str], name: str) -> str:
    """The value of an option in a command."""
    values = [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")]
    return values[0] if values else words[words.index(name) + 1]


def environment(cluster, *where: str) -> dict[str, str]:
    """Variables that containers are started with."""
    words = [shlex.split(run) for name in where for run in cluster["docker"].get(name, [])]
    return dict(value.split("=", 1) for name, value in words if name == "--env")


def mlflow(cluster) -> list[str]:
    [command] = [command for command in cluster["head_start_ray_commands"] if "mlflow server" in command]
    return shlex.split(command.partition("mlflow server")[2].partition(" > ")[0])


def test_it_is_valid_by_rays_schema(cluster):
    validate_config(cluster)


def test_a_misspelt_key_would_be_refused(cluster):
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(cluster | {"max_worker": 3})


def test_it_begins_with_a_head_alone_that_computes_nothing(cluster, workers):
    assert cluster["head_node_type"] == "head"
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert cluster["available_node_types"]["head"]["max_workers"] == 0
    assert {node["min_workers"] for node in workers.values()} == {0}
    assert sum(node["max_workers"] for node in workers.values()) <= cluster["max_workers"]


def demands(study) -> list[dict[str, float]]:
    """The bundles that Ray is asked for: the workers of each run, and actors."""
    actors = {"CPU": study.actors.cpus, "GPU": study.actors.gpus}
    runs = [{"CPU": s.training.cpus, "GPU": s.training.gpus} for s in study.specs() for _ in range(s.training.workers)]
    return [{name: amount for name, amount in bundle.items() if amount} for bundle in [actors, *runs]]


STUDIES = sorted(file for file in (REPOSITORY / "raygeo" / "studies").glob("*.yaml") if file.stem != "adapters")


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_autoscaler_finds_a_node_for_all_that_a_shipped_study_asks_for(cluster, file):
    types, most = cluster["available_node_types"], cluster["max_workers"]
    score = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    for bundle in demands(load_study(file, ())):
        found, left = get_nodes_for(types, {"head": 1}, "head", most, [bundle], score)
        assert left == []
        assert dict(found) == {"gpu" if "GPU" in bundle else "cpu": 1}


def test_all_nodes_install_raygeo_in_the_same_way(cluster):
    [install] = cluster["setup_commands"]
    assert "--constraint /home/ray/raygeo/constraints.txt --editable /home/ray/raygeo" in install
    assert cluster["file_mounts"]["/home/ray/raygeo"] == "."
    assert cluster["rsync_exclude"] == ["**/.git", "**/.venv", "/store"], "a package may be called store"
    assert cluster["head_setup_commands"][0] == cluster["worker_setup_commands"][0] == install


def test_images_have_the_ray_of_the_constraints_and_a_python_that_raygeo_runs_on(cluster, workers):
    constraints = (REPOSITORY / "constraints.txt").read_text()
    images = {cluster["docker"]["head_image"], cluster["docker"]["worker_image"]}
    images |= {node["docker"]["worker_image"] for node in workers.values() if "docker" in node}
    for image in images:
        ray, python = re.fullmatch(r"rayproject/ray:([\d.]+)-py3(\d+)(?:-gpu)?", image).groups()
        assert f"ray=={ray}\n" in constraints
        assert int(python) >= 11
    for node in workers.values():
        image = node.get("docker", {}).get("worker_image", cluster["docker"]["worker_image"])
        assert image.endswith("-gpu") == bool(node["resources"].get("GPU"))


def test_nodes_have_disks_and_roles_and_share_a_file_system(cluster, workers):
    for name, node in cluster["available_node_types"].items():
        config = node["node_config"]
        assert config["IamInstanceProfile"] == {"Name": "raygeo-head" if name == "head" else "raygeo-worker"}
        assert all(disk["Ebs"]["VolumeSize"] >= 200 for disk in config["BlockDeviceMappings"])
    assert f"--volume {SHARED}:{SHARED}" in cluster["docker"]["run_options"]
    mounts = [command for command in cluster["initialization_commands"] if "mount -t nfs4" in command]
    assert len(mounts) == 1
    assert f"efs.{cluster['provider']['region']}.amazonaws.com:/ {SHARED}" in mounts[0]
    assert environment(cluster, "run_options")["HF_HOME"].startswith(SHARED)


def test_every_node_asks_for_the_token_and_has_it(cluster):
    variables = environment(cluster, "run_options")
    assert variables["RAY_AUTH_MODE"] == "token"
    folder, _, name = variables["RAY_AUTH_TOKEN_PATH"].rpartition("/")
    assert cluster["file_mounts"][folder] == "~/.ray/raygeo"
    assert name == "auth_token"


def test_mlflow_is_where_drivers_look_for_it_and_nowhere_else(cluster):
    from mlflow.cli import server

    words = mlflow(cluster)
    known = {name for parameter in server.params for name in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known
    address = f"http://{option(words, '--host')}:{option(words, '--port')}"
    assert address == environment(cluster, "head_run_options")["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert "MLFLOW_TRACKING_URI" not in environment(cluster, "run_options", "worker_run_options")
    assert option(words, "--allowed-hosts") == "127.0.0.1:*,localhost:*"
    assert option(words, "--artifacts-destination").startswith(SHARED)
    assert option(words, "--backend-store-uri").startswith(f"sqlite:///{SHARED}")


def test_workers_join_the_head(cluster):
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    [head] = [c for c in cluster["head_start_ray_commands"] if "ray start" in c]
    [worker] = [c for c in cluster["worker_start_ray_commands"] if "ray start" in c]
    for command in (head, worker):
        assert {word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")} <= known
    assert option(shlex.split(head), "--port") == option(shlex.split(worker), "--address").rpartition(":")[2]
    assert option(shlex.split(head), "--dashboard-host") == "127.0.0.1"
