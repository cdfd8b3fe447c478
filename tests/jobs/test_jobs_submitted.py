"""Jobs on a cluster that asks for a token, of two nodes that have less in common than they should."""

import os
import subprocess

import pytest
from job_cases import job_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]


def may_mount() -> bool:
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return os.name == "posix" and subprocess.run(tried, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="mount namespaces are not permitted here")
def test_doctor_finds_what_two_nodes_do_not_share_and_a_job_may_not_keep_its_store(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    with job_cluster(hidden=store, worker=["--num-cpus=1", "--num-gpus=1"]) as cluster:
        done = cluster.submit("jobs/doctor.py", "--store", str(store))
        assert done.returncode == 1
        assert f"and the driver do not see each other's files in the store {store}" in done.stdout
        assert "GPUs that Ray counts there: 1; that torch" in done.stdout
        assert "is the head and has 2 CPUs" in done.stdout
        assert "exit code 1" in done.stdout
        refused = cluster.submit("jobs/report.py", "store/mine", tries=1, RAY_AUTH_TOKEN="wrong")
        assert refused.returncode != 0
        assert "Running entrypoint" not in refused.stdout
    assert list(store.iterdir()) == []
