import pytest
import torch
from curvature_cases import make_probe
from own_parts import MovedSettings
from tiny import save_tiny_student

from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.analyses.norms.workload import NormSettings
from raygeo.analyses.outputs.workload import OutputSettings
from raygeo.cluster.execution import run_workload
from raygeo.data.exam import Exam
from raygeo.data.readers import Prompt
from raygeo.evaluation.answers import AnswerSettings
from raygeo.generation.choice import LOCAL
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.delta import save_full_delta
from raygeo.models.loading import Loading
from raygeo.models.run import Run
from raygeo.pipeline.objectives import Objectives
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.settings import RunSpec
from raygeo.training.worker import run_record

pytestmark = pytest.mark.cluster

NAME = "model.layers.0.self_attn.q_proj.weight"
METRICS = (
    "eval/heldout/accuracy", "eval/heldout/nll", "geometry/top_eigenvalue/hessian", "geometry/kl_to_base",
    "geometry/delta_norm",
)  # fmt: skip


@pytest.fixture
def measured(tmp_path, store):
    """Two trained runs, and what measures one of them; it counts the workloads' units made and reused."""
    student = save_tiny_student(tmp_path / "student")
    make_probe([(2, 5), (3, 2)], 20).save(tmp_path / "probe.npz")
    runs = []
    for i in range(2):
        noise = torch.Generator().manual_seed(i)
        change = 0.1 * torch.randn(32, 32, generator=noise)
        save_full_delta(tmp_path / str(i), {NAME: change})
        runs.append((Run(f"r{i}", f"k{i}", str(tmp_path / str(i))), float(change.norm())))
        spec = RunSpec.model_validate({"name": "elsewhere", "loss": {"type": "sft"}, "training": {"steps": 1}})
        curve = [
            {"run": "elsewhere", "step": s, "metric": "heldout_nll", "value": v + i} for s, v in ((2, 0.5), (1, 9.0))
        ]
        store.write_unit(f"k{i}", {"runs": [run_record(spec, f"k{i}", "finished").row()], "training_curves": curve})
    probes = {"curvature": tmp_path / "probe.npz", "solutions": tmp_path / "probe.npz"}
    renderer = PlainRenderer(word_tokenizer())
    objectives = Objectives(
        metrics=METRICS,
        asked={
            "norms": NormSettings(),
            "outputs": OutputSettings(bootstrap=100),
            "curvature": CurvatureSettings(spaces=("span", "delta"), ggn=True, max_steps=6, top_k=2, trace_probes=2),
            "moved": MovedSettings(),
        },
        own=("own_parts:MOVED",),
        benchmarks={"heldout": [Prompt("0", "1 + 1 =", "2", None)], "other": [Prompt("0", "1 + 2 =", "3", None)]},
        probes=probes,
        exam=Exam([], "exact", renderer),
        base=student,
        base_key="base",
        rollouts="rollouts",
        tokens=tmp_path,
        answers=AnswerSettings(max_new_tokens=2),
        grading="exact",
        renderer=renderer,
        engine=LOCAL,
        loading=Loading(),
    )
    results = []

    def run(workload):
        results.append((workload.name, run_workload(workload, store)))
        return results[-1][1]

    return objectives, runs, store, run, results


def test_a_run_is_measured_by_itself_and_no_unit_is_made_twice(measured):
    objectives, runs, store, run, results = measured
    found = [objectives.measure(each, each.key, store, run) for each, _ in runs]
    assert [tuple(one) for one in found] == [METRICS] * 2
    assert [one["eval/heldout/nll"] for one in found] == [0.5, 1.5]  # the last step's, whatever the order
    assert [one["geometry/delta_norm"] for one in found] == pytest.approx([norm for _, norm in runs])
    assert {one["eval/heldout/accuracy"] for one in found} <= {0.0, 1.0}
    assert found[0]["geometry/kl_to_base"] > 0
    tops = [one["geometry/top_eigenvalue/hessian"] for one in found]
    assert tops[0] != pytest.approx(tops[1], rel=1e-3)
    made = {name: [result.made for of, result in results if of == name] for name, _ in results}
    # A run's answers, eigenvalues and norm; its divergence and confidence, and once the base's.
    assert made == {"answers": [1, 1], "curvature.extremes": [1, 1], "norms": [1, 1], "outputs": [3, 2]}
    results.clear()
    assert objectives.measure(runs[0][0], "k0", store, run) == found[0]
    assert sum(result.made for _, result in results) == 0


def test_only_what_is_asked_for_is_computed(measured):
    objectives, [(first, _), _], store, run, results = measured
    only = Objectives(**vars(objectives) | {"metrics": ("eval/heldout/nll",)})
    assert only.measure(first, "k0", store, run) == {"eval/heldout/nll": 0.5}
    assert results == []


def test_what_was_never_reported_is_left_out(measured):
    objectives, [(first, _), _], store, run, _ = measured
    assert Objectives(**vars(objectives) | {"metrics": ("train/nll",)}).measure(first, "k0", store, run) == {}


def test_a_metric_of_the_study_s_own_is_found_in_a_process_that_knows_no_study(measured):
    objectives, [(first, _), _], store, run, _ = measured
    only = Objectives(**vars(objectives) | {"metrics": ("geometry/moved_entries",)})
    assert only.measure(first, "k0", store, run) == {"geometry/moved_entries": 32 * 32}
