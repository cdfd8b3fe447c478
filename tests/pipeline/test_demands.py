"""What a cluster can never hold is refused before anything is made."""

import json
from dataclasses import asdict, replace

import pytest
from study_cases import tiny_study

from raygeo.analyses.registry import analyses
from raygeo.errors import ClusterError, EndpointError, StudentError
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.demands import check_demands, check_engines, cluster_to_check
from raygeo.pipeline.report import about_study
from raygeo.pipeline.rollouts import TOKENS
from raygeo.pipeline.study import STAGES, run_study
from raygeo.records import FINISHED, RunRecord
from raygeo.tables import to_arrow

pytestmark = pytest.mark.cluster


def study(store, **changes):
    return parse_study(tiny_study(store=store.location, **changes))


def refusal(study, store, stages=STAGES):
    with pytest.raises(ClusterError) as refused:
        check_demands(study, store, stages)
    return str(refused.value).splitlines()


def test_everything_that_does_not_fit_is_named_before_anything_starts(ray_session, store):
    runs = [{"loss": {"type": "sft"}, "seed": [0, 1]}, {"loss": {"type": "sft"}, "workers": 9, "name": "wide"}]
    greedy = study(store, runs=runs, actors={"gpus": 1}, student={"gpus": 2}, training={"steps": 1, "cpus": 3})
    with pytest.raises(ClusterError) as refused:
        run_study(greedy)
    lines = str(refused.value).splitlines()
    assert [line.partition(" asks for ")[0] for line in lines] == [
        "making the student", "an actor (actors)", "run sft-lr1e-05-s0 (and 1 others)", "run wide",
    ]  # fmt: skip
    assert "9 x (3 CPU)" in lines[3]
    assert not store.folders("students")


def test_engines_that_cannot_write_are_refused_while_they_have_to(ray_session, store):
    server = {"type": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "NOT_SET"}
    asking = study(store, rollouts={"sample": {"prompts": 4, "engine": server}})
    with pytest.raises(EndpointError, match="NOT_SET"):
        check_engines(asking, store, STAGES)
    check_engines(asking, store, STAGES[:1])
    store.complete_folder(TOKENS, "made")
    check_engines(asking, store, STAGES)


def test_the_engine_of_rounds_is_asked_though_nothing_is_evaluated(ray_session, store, monkeypatch):
    monkeypatch.setattr("raygeo.generation.vllm.find_spec", lambda name: None)
    learned = {"loss": {"type": "grpo"}, "rounds": 2}
    lora = {"training": {"steps": 2, "lora": {}}, "evaluation": {"heldout": False, "engine": {"type": "vllm"}}}
    sampling = study(store, runs=[learned], geometry=dict.fromkeys(analyses()), **lora)
    with pytest.raises(StudentError, match="vLLM, which is not installed"):
        check_engines(sampling, store, STAGES)
    check_engines(sampling, store, STAGES[:2])
    check_engines(study(store, geometry=dict.fromkeys(analyses()), **lora), store, STAGES)
    [run] = sampling.plan.trials()
    ended = RunRecord(run.spec.name, run.spec.key("student", "rollouts"), FINISHED)
    store.publish_rows("runs", to_arrow("runs", [ended.row()]))
    check_engines(sampling, store, STAGES)


def test_memory_is_not_checked_where_gpus_are_wanted_and_none_answers(ray_session, store):
    said = []
    assert cluster_to_check(study(store, actors={"gpus": 1}), said.append) is None
    assert "is not checked" in said[0]
    found = cluster_to_check(study(store), said.append)
    assert found.gpu is None
    assert found.machine > 0


def test_ends_of_a_sweep_are_asked_for_too(ray_session, store):
    runs = [{"loss": {"type": "sft"}, "lr": {"log_uniform": [1e-5, 1e-3]}, "gpus": 1}]
    [line] = refusal(study(store, runs=runs, sweep={"search": "optuna", "samples": 2}), store)
    assert "1 x (1 CPU, 1 GPU)" in line


def test_only_stages_that_are_to_run_are_asked_for(ray_session, store):
    greedy = study(store, training={"steps": 1, "gpus": 1})
    check_demands(greedy, store, STAGES[:2])
    assert len(refusal(greedy, store, STAGES[:4])) == 1


def test_what_is_made_is_not_asked_for_again(ray_session, store):
    greedy = study(store, training={"steps": 1, "gpus": 1})
    [spec] = greedy.specs()
    record = RunRecord(spec.name, spec.key("student", "rollouts"), "failed")
    store.publish_rows("runs", to_arrow("runs", [record.row()]))
    assert len(refusal(greedy, store)) == 1
    store.publish_rows("runs", to_arrow("runs", [replace(record, status=FINISHED).row()]))
    check_demands(greedy, store, STAGES)
    older = replace(record, status=FINISHED, key="0123456789abcdef-r0.1")
    store.publish_rows("runs", to_arrow("runs", [older.row()]))
    assert len(refusal(greedy, store)) == 1, "a run of another revision is trained anew"
    store.publish_rows("runs", to_arrow("runs", [replace(record, status=FINISHED).row()]))
    everything = study(store, actors={"gpus": 1})
    assert len(refusal(everything, store)) == 1
    about = about_study(everything, ("train",))
    store.write_bytes("report.json", json.dumps(asdict(about)).encode())
    assert len(refusal(everything, store)) == 1
    store.write_bytes("report.json", json.dumps(asdict(about) | {"timings": [["train", 1.0, 1, 0]]}).encode())
    check_demands(everything, store, STAGES)
