import pytest
import torch
from curvature_cases import make_probe
from tiny import save_tiny_student

from raygeo.analyses.curvature.extremes import ExtremeEigenvalues
from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.cluster.execution import in_process, run_workload
from raygeo.evaluation.answers import AnswerSettings
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run
from raygeo.pipeline.objectives import Objectives, in_one_space
from raygeo.search.settings import Objective
from raygeo.tables import BASE
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.settings import RunSpec

pytestmark = pytest.mark.cluster

NAME = "model.layers.0.self_attn.q_proj.weight"


def specs(*targets):
    """A run for each of the modules to adapt; None trains every weight."""
    loras = [target and {"target_modules": target} for target in targets]
    return [
        RunSpec.model_validate({"name": str(i), "loss": {"type": "sft"}, "training": {"lora": lora, "steps": 1}})
        for i, lora in enumerate(loras)
    ]


@pytest.mark.parametrize(
    ("spaces", "targets", "judged"),
    [
        (("span", "delta", "all"), ["all-linear", "all-linear"], "delta"),
        (("span",), [["q_proj"]], "delta"),
        (("attention", "delta"), [None], "attention"),
        (("delta", "attention"), ["all-linear", ["q_proj"]], "attention"),
        (("delta", "span"), [["q_proj"], None], "all"),
    ],
)
def test_runs_are_judged_in_a_space_that_does_not_depend_on_which_are_finished(spaces, targets, judged):
    assert in_one_space(CurvatureSettings(spaces=spaces, ggn=True), specs(*targets)).spaces == (judged,)


def test_a_run_is_judged_by_an_eigenvalue_that_the_study_then_has(tmp_path, store):
    student = save_tiny_student(tmp_path / "student")
    runs = [Run(BASE, "k", None)]
    for i in range(2):
        noise = torch.Generator().manual_seed(i)
        save_full_delta(tmp_path / str(i), {NAME: 0.1 * torch.randn(32, 32, generator=noise)})
        runs.append(Run(f"r{i}", f"k{i}", str(tmp_path / str(i))))
    make_probe([(2, 5), (3, 2)], 20).save(tmp_path / "probe.npz")
    settings = CurvatureSettings(spaces=("span", "delta"), ggn=True, max_steps=6, top_k=2, trace_probes=2)
    objectives = Objectives(
        (Objective(metric="top_eigenvalue"),), student, "base", [], AnswerSettings(), "exact",
        PlainRenderer(word_tokenizer()), tmp_path / "probe.npz", in_one_space(settings, specs("all-linear")),
    )  # fmt: skip
    results = []

    def run(workload):
        results.append(run_workload(workload, store, in_process))
        return results[-1]

    first = objectives.measure({"a": runs[1]}, store, run)
    both = objectives.measure({"a": runs[1], "b": runs[2]}, store, run)
    assert both["a"] == first["a"]
    assert [result.made for result in results] == [1, 1]
    study = ExtremeEigenvalues(settings, runs, student, tmp_path / "probe.npz")
    assert run_workload(study, store, in_process).reused == 2
    rows = store.publish("curvature", [task.key for task in study.tasks()], study.tables["curvature"]).to_pylist()
    top = {
        row["run"]: row["value"]
        for row in rows
        if (row["operator"], row["quantity"], row["index"]) == ("hessian", "eigenvalue", 0)
    }
    assert [both[key]["top_eigenvalue"] for key in "ab"] == [top["r0"], top["r1"]]
    assert top["r0"] != pytest.approx(top["r1"], rel=1e-3)
