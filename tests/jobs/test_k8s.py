"""The manifests in ``jobs/k8s``: valid by Kubernetes' own schemas and by KubeRay's, and meaning what is said of them.

KubeRay's schema comes in no package. ``RAY_JOB`` is written by hand: those fields that the manifest uses and their
neighbours, by name and type, and nothing else is let through. It was compared with the types that KubeRay's own is
generated from (ray.io/v1; of a RayJob those of KubeRay 1.5, of its cluster those that followed 1.6). Pod templates
inside are validated as pods by Kubernetes' schema.
"""

import copy
import shlex
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "jobs" / "k8s"
KUBERNETES = "1.33"

TEXT, WHOLE, YES_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
TEMPLATE = {"type": "object", "required": ["spec"]}


def fields(required: tuple[str, ...] = (), **known: dict) -> dict:
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


WORKERS = fields(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=TEXT, suspend=YES_NO, replicas=WHOLE, minReplicas=WHOLE, maxReplicas=WHOLE, numOfHosts=WHOLE,
    idleTimeoutSeconds=WHOLE, resources=TEXTS, labels=TEXTS, rayStartParams=TEXTS, template=TEMPLATE,
)  # fmt: skip
HEAD = fields(
    ("template",), rayStartParams=TEXTS, template=TEMPLATE, resources=TEXTS, labels=TEXTS, serviceType=TEXT,
    enableIngress=YES_NO,
)  # fmt: skip
CLUSTER = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=TEXT),  # enableK8sTokenAuth is not for jobs
    enableInTreeAutoscaling=YES_NO,
    autoscalerOptions=fields(
        version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=WHOLE, image=TEXT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    headGroupSpec=HEAD, workerGroupSpecs={"type": "array", "items": WORKERS}, suspend=YES_NO,
)  # fmt: skip
RAY_JOB = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata={"type": "object", "required": ["name"]},
    spec=fields(
        entrypoint=TEXT, runtimeEnvYAML=TEXT, jobId=TEXT, metadata=TEXTS, suspend=YES_NO, backoffLimit=WHOLE,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterConfig=fields(backoffLimit=WHOLE), submitterPodTemplate=TEMPLATE, clusterSelector=TEXTS,
        activeDeadlineSeconds=WHOLE, ttlSecondsAfterFinished=WHOLE, shutdownAfterJobFinishes=YES_NO,
        entrypointNumCpus={"type": "number"}, entrypointNumGpus={"type": "number"}, entrypointResources=TEXT,
        rayClusterSpec=CLUSTER,
    ),
)  # fmt: skip


@pytest.fixture
def job() -> dict:
    return yaml.safe_load((FOLDER / "study.yaml").read_text())


@pytest.fixture
def shared() -> dict[str, dict]:
    return {part["kind"]: part for part in yaml.safe_load_all((FOLDER / "shared.yaml").read_text())}


def templates(job) -> dict[str, dict]:
    """Pod templates of the head and of the groups."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]} | groups


def container(template) -> dict:
    [found] = template["spec"]["containers"]
    return found


def environment(template) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(template).get("env", [])}


def validate_pod(template) -> None:
    metadata = {"name": "pod", **template.get("metadata", {})}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_job_is_valid_by_kuberays_schema(job):
    jsonschema.validate(job, RAY_JOB)
    for template in templates(job).values():
        validate_pod(template)


def test_what_is_wrong_would_be_found(job):
    changes = [("spec", "backOffLimit", 3), ("spec", "submissionMode", "K8SJobMode"), ("spec", "backoffLimit", "3")]
    for place, name, value in changes:
        wrong = copy.deepcopy(job)
        wrong[place][name] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, RAY_JOB)
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        validate_pod(templates(job)["head"])


def test_what_it_shares_is_valid_by_kubernetes_schemas(shared):
    assert set(shared) == {"PersistentVolumeClaim", "Deployment", "Service", "NetworkPolicy"}
    for part in shared.values():
        kubernetes_validate.validate(part, KUBERNETES, strict=True)


def test_the_cluster_asks_for_the_token_of_a_secret(job):
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "raygeo-token"}
    said = (FOLDER / "study.yaml").read_text()
    assert "kubectl create secret generic raygeo-token --from-literal=auth_token=" in said


def test_a_retry_resumes_and_the_cluster_ends_with_the_job(job):
    spec = job["spec"]
    assert (spec["submissionMode"], spec["shutdownAfterJobFinishes"]) == ("K8sJobMode", True)
    assert spec["ttlSecondsAfterFinished"] > 0, "which KubeRay takes only beside shutdownAfterJobFinishes"
    assert spec["backoffLimit"] > 0
    words = shlex.split(spec["entrypoint"])
    assert words[1].removeprefix("/home/ray/raygeo/") == "jobs/study.py"
    assert all(word.startswith("/mnt/raygeo/") for word in (words[2], words[words.index("--store") + 1]))


def test_it_begins_with_a_head_alone_that_computes_nothing(job):
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"]
    for group in cluster["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0) < (0, group["maxReplicas"])
    assert {template["spec"]["restartPolicy"] for template in templates(job).values()} == {"Never"}, "autoscaler v2"
    limits = {name: container(template)["resources"]["limits"] for name, template in templates(job).items()}
    assert [name for name, limit in limits.items() if "nvidia.com/gpu" in limit] == ["gpu"]


def test_all_pods_share_a_volume_an_image_and_what_comes_from_the_hub(job, shared):
    claim = shared["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pods = [*templates(job).values(), shared["Deployment"]["spec"]["template"]]
    assert len({container(pod)["image"] for pod in pods}) == 1
    for pod in pods:
        mounted = {mount["name"]: mount["mountPath"] for mount in container(pod)["volumeMounts"]}
        claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod["spec"]["volumes"]}
        assert mounted["shared"] == "/mnt/raygeo"
        assert claims["shared"] == {"claimName": claim["metadata"]["name"]}
    assert all(environment(pod)["HF_HOME"].startswith("/mnt/raygeo") for pod in templates(job).values())


def test_the_image_has_the_ray_that_is_said(job):
    [base] = [line.split()[1] for line in (FOLDER / "Dockerfile").read_text().splitlines() if line.startswith("FROM")]
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert base.startswith(f"rayproject/ray:{version}-py312")
    assert f"ray=={version}\n" in (REPOSITORY / "constraints.txt").read_text()


def test_drivers_reach_mlflow_and_nobody_else_does(job, shared):
    service, deployment = shared["Service"], shared["Deployment"]["spec"]
    name, [port] = service["metadata"]["name"], service["spec"]["ports"]
    address = f"{name}:{port['port']}"
    assert environment(templates(job)["head"])["MLFLOW_TRACKING_URI"] == f"http://{address}"
    [command] = container(deployment["template"])["args"]
    words = shlex.split(command.partition("mlflow server")[2])
    assert address in words[words.index("--allowed-hosts") + 1].split(",")
    assert words[words.index("--port") + 1] == str(port["targetPort"])
    assert name != "mlflow", "its service links would set MLFLOW_PORT, which MLflow takes for --port"
    labels = deployment["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["selector"]["matchLabels"] == labels
    policy = shared["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    [rule] = policy["ingress"]
    [source] = rule["from"]
    for pod in templates(job).values():
        assert source["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
