"""Where the runs of a study come from, as tags that colleagues can search for."""

import json
import os
import subprocess
from collections import Counter
from importlib.metadata import version

import ray
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_GROUP = "ray.io/node-group"


def code_tags(study_key: str) -> dict[str, str]:
    """The study's content key, raygeo's version, and the git commit of the working directory if it has one."""
    tags = {"raygeo.study": study_key, "raygeo.version": version("raygeo")}
    tags |= {MLFLOW_SOURCE_NAME: "raygeo", MLFLOW_SOURCE_TYPE: "LOCAL"}
    commit = _commit()
    return tags | ({MLFLOW_GIT_COMMIT: commit} if commit else {})


def _commit() -> str | None:
    """The commit, with ``-dirty`` behind it if files that git knows were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def cluster_tags() -> dict[str, str]:
    """The nodes of the cluster that this process is connected to, by kind, and the submission id of its job, if any."""
    tags = {"raygeo.nodes": ", ".join(f"{count} x {kind}" for kind, count in sorted(_kinds().items()))}
    try:
        job = json.loads(os.environ.get(_JOB, "{}"))["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return tags
    return tags | {"raygeo.ray_job": str(job), MLFLOW_SOURCE_TYPE: "JOB"}


def _kinds() -> Counter[str]:
    """How many nodes there are of each kind, as in ``gpu-workers (48 CPU, 4 L40S)``."""
    return Counter(_kind(node) for node in ray.nodes() if node["Alive"])


def _kind(node: dict) -> str:
    has = node["Resources"]
    cards = [name.partition(":")[2] for name in has if name.startswith("accelerator_type:")]
    parts = [f"{has.get('CPU', 0):g} CPU"]
    if has.get("GPU"):
        parts.append(f"{has['GPU']:g} {' or '.join(cards) or 'GPU'}")
    group = (node.get("Labels") or {}).get(_GROUP)
    return f"{group} ({', '.join(parts)})" if group else ", ".join(parts)
