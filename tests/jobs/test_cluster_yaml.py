"""``cluster.yaml`` means what is said of it: the head drives and serves MLflow, and training runs elsewhere."""

from pathlib import Path

import yaml

CLUSTER = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
NODES = CLUSTER["available_node_types"]


def test_training_has_nodes_with_gpus_and_the_head_takes_none():
    assert NODES[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0}
    workers = [node for name, node in NODES.items() if name != CLUSTER["head_node_type"]]
    assert any(node["resources"]["GPU"] and node["min_workers"] for node in workers)


def test_workers_join_the_head_and_mlflow_is_served_on_it():
    head, worker = (" ".join(CLUSTER[f"{node}_start_ray_commands"]) for node in ("head", "worker"))
    assert "--port=6379" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert "mlflow server" in head
    assert "--host 127.0.0.1 --port 5000 --allowed-hosts 127.0.0.1:5000,localhost:5000" in head
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 " in head.partition("ray start --head")[0]
