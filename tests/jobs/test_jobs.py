"""Every job: what it is called with, what goes with it, and where its store may not be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging

from raygeo.errors import StoreError
from raygeo.store.location import check_outlives_job

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]
JOBS = sorted((REPOSITORY / "jobs").glob("*.py"))


def test_there_is_a_job_for_each_command_that_needs_a_cluster_or_its_store():
    assert {job.stem for job in JOBS} == {"compare", "doctor", "report", "study", "sweep"}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_help_says_how_the_job_is_called(job):
    command = [sys.executable, f"jobs/{job.name}", "--help"]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    said = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"Usage: python jobs/{job.name} [OPTIONS]" in said
    assert "--help" in said


def test_only_what_runs_goes_with_a_job(tmp_path):
    """By Ray's own walk over the working directory, which honours .gitignore and .rayignore."""
    for name in ("store/x.txt", "rollouts.jsonl", "mine/model.safetensors", "mine/study.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for name in (".gitignore", ".rayignore", "jobs", "raygeo", "tests", "docs", "benchmarks", "checks"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    sent = set()

    def send(path: Path) -> None:
        if path.is_file():
            sent.add(path.relative_to(tmp_path).as_posix())

    packaging._dir_travel(tmp_path, [], send, include_gitignore=True)
    assert {"jobs/study.py", "raygeo/studies/quickstart.yaml", "raygeo/cli.py", "mine/study.yaml"} <= sent
    assert not [name for name in sent if name.split("/")[0] in ("store", "tests", "docs", "benchmarks", "checks")]
    assert not [name for name in sent if name.endswith((".jsonl", ".safetensors", ".pyc"))]
    assert ".git" in get_runtime_env_default_excludes()


@pytest.mark.parametrize("location", ["store/mine", "{cwd}/store", "file://{cwd}/store"])
def test_a_store_that_ends_with_its_job_is_refused(tmp_path, monkeypatch, location):
    unpacked = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    with pytest.raises(StoreError, match="give a path or URI that all nodes share"):
        check_outlives_job(location.format(cwd=unpacked))
    check_outlives_job(str(tmp_path / "store"))
    check_outlives_job("s3://bucket/working_dir_files/x")
