"""``raygeo doctor``: on this machine, and what it makes of answers that nodes might give."""

import dataclasses
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from study_cases import tiny_study

from raygeo.doctor import findings
from raygeo.doctor.command import examine
from raygeo.doctor.machine import describe, use_gpus
from raygeo.doctor.nodes import Node
from raygeo.doctor.server import examine_tracking
from raygeo.pipeline.config import parse_study
from raygeo.store import Store

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def facts():
    return describe()


@pytest.fixture
def doctor(ray_session):
    """Whether nothing is wrong, and what was printed."""

    def call(*arguments, **options) -> tuple[bool, str]:
        console = Console(file=StringIO(), width=200)
        return examine(*arguments, console=console, **options), console.file.getvalue()

    return call


def nodes(here, **changes) -> list[Node]:
    """A head and a worker that answer as they should; ``changes`` are the worker's."""
    head = Node("0", "head", True, {"CPU": 0.0}, here)
    worker = Node("1", "worker", False, {"CPU": 8.0, "GPU": 2.0}, here, gpus=("L40S", "L40S"))
    return [head, dataclasses.replace(worker, **changes)]


def wrong(here, **changes) -> list[str]:
    return list(findings.wrong_with_nodes(nodes(here, **changes), here, "/shared/store"))


def test_a_machine_that_is_well(doctor, tmp_path):
    well, said = doctor(store=str(tmp_path / "new"))
    assert well, said
    assert "nothing is wrong" in said
    assert "shared" in said
    assert not (tmp_path / "new").exists(), "it was there only to be tried"


def test_what_is_wrong_is_told_at_once(doctor, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    training = tiny_study()["training"] | {"workers": 2, "gpus": 1}
    well, said = doctor(parse_study(tiny_study(training=training, store=str(tmp_path))))
    assert not well
    assert "asks for 2 x (1 CPU, 1 GPU)" in said
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:9 does not answer this process" in said
    assert "secret" not in said
    assert tmp_path.exists()
    assert list(tmp_path.iterdir()) == [], "the store is as it was"


def test_a_store_that_mlflow_cannot_live_in(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    where, trouble = examine_tracking(Store("mock://bucket/mine"))
    assert where == "nowhere"
    assert "set MLFLOW_TRACKING_URI to an MLflow server" in trouble


def test_nodes_that_are_alike_are_well(facts):
    assert wrong(facts) == []
    assert list(findings.advice_on_nodes(nodes(facts))) == []


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [("torch", "2.9.0", "for the driver and 2.9.0 on"), ("raygeo", "missing", "for the driver and missing on")],
)
def test_versions_that_differ(facts, package, version, said):
    there = dataclasses.replace(facts, versions={**facts.versions, package: version})
    [one] = wrong(facts, facts=there)
    assert one.startswith(f"{package} is {facts.versions[package]} {said} worker. Install the same on every node")


def test_code_of_one_version_that_differs(facts):
    [said] = wrong(facts, facts=dataclasses.replace(facts, code="0" * 8))
    assert "the code of raygeo on worker is not the driver's" in said


def test_clocks_that_differ_by_more_than_the_call_took(facts):
    [said] = wrong(facts, offset=-30.0, bound=0.01)
    assert "the clock of worker is 30.0 s behind the driver's" in said
    assert wrong(facts, offset=-30.0, bound=29.0) == []


def test_stores_that_are_not_shared(facts):
    [apart] = wrong(facts, apart=True)
    assert "worker and the driver do not see each other's files in the store /shared/store" in apart
    [closed] = wrong(facts, store_trouble="PermissionError: denied")
    assert "worker cannot write to the store /shared/store: PermissionError: denied" in closed


def test_a_node_that_is_silent_and_gpus_that_lie(facts):
    [silent] = wrong(facts, facts=None, silence="no answer within 90 s")
    assert "worker said nothing of itself: no answer within 90 s" in silent
    [lying] = wrong(facts, gpu_trouble="Ray counts 2 GPUs there and torch 2.13.0 sees 0")
    assert "the GPUs of worker cannot be used: Ray counts 2 GPUs there" in lying


def test_what_might_be_better(facts):
    [grows] = findings.advice_on_nodes(nodes(facts), autoscaled=True)
    assert grows == "the cluster starts nodes as they are needed; the 2 that are up now were asked"
    [busy] = findings.advice_on_nodes(nodes(facts, gpus=None))
    assert busy == "the GPUs of worker are at work and were not tried"
    head, worker = nodes(facts)
    [said] = findings.advice_on_nodes([dataclasses.replace(head, resources={"CPU": 8.0}), worker])
    assert "head is the head and has 8 CPUs" in said
    assert list(findings.advice_on_nodes([dataclasses.replace(head, resources={"CPU": 8.0})])) == [], "all there is"


def test_gpus_are_used(monkeypatch):
    """On what stands for them: the products are made by the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "L40S")
    assert use_gpus(3)[1] == f"GPUs that Ray counts there: 3; that torch {torch.__version__} sees: 2"
    assert "GPU 0 (L40S) cannot be used: " in use_gpus(2)[1]
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda size, value, device: full(size, value))
    assert use_gpus(2) == (("L40S", "L40S"), "")
    monkeypatch.setattr(torch, "full", lambda size, value, device: full(size, value + int(device[-1])))
    assert use_gpus(2)[1] == "GPU 1 (L40S) multiplies matrices wrongly"


def test_folders_that_a_node_does_not_see(facts, tmp_path):
    assert describe([str(tmp_path), "/nowhere"]).unseen == ("/nowhere",)
    [said] = wrong(facts, facts=dataclasses.replace(facts, unseen=("/models/mine",)))
    assert said == "worker does not see /models/mine. Put it where every node sees it"


def test_a_digest_tells_code_apart(facts, tmp_path, monkeypatch):
    import raygeo

    (tmp_path / "raygeo").mkdir()
    (tmp_path / "raygeo" / "__init__.py").write_text("")
    monkeypatch.setattr(raygeo, "__file__", str(tmp_path / "raygeo" / "__init__.py"))
    other = describe().code
    assert other != facts.code
    Path(raygeo.__file__).write_text("#")
    assert describe().code != other
