"""What is said of every study, whatever is analysed, that its numbers do not show."""

import json

from report_study import DIVERGED, REFERENCE
from view_cases import view_of

from raygeo.analyses import registry
from raygeo.analyses.heads import report as heads
from raygeo.records import FINISHED, RunRecord
from raygeo.report.limits import seeds
from raygeo.report.made import facts
from raygeo.report.study import STUDY
from raygeo.report.verdict import next_runs
from raygeo.tables import to_arrow


def said(view):
    return "\n".join(sentence for caveat in STUDY.caveats for sentence in caveat(view))


def test_limits_name_what_this_study_cannot_show(view):
    told = said(view)
    assert f"{DIVERGED} has no result: diverged, objective became nan at step 12 of 150; lower lr (0.005)." in told
    assert "6 of 7 configurations (a loss with its options, and all settings but seeds) were trained with one" in told
    assert "300 problems" in told
    assert "± 5.6 points" in told
    assert "dpo-lr0.0005-s0 has the most, 10.3 %" in told
    assert "Holm-corrected over 36 pairs" in told
    assert "2 configurations were compared on the held-out data" in told


def test_limits_say_what_could_not_be_graded(tables):
    undecided = [r | {"undecided": 3 if r["run"] == "dpo-lr0.0005-s0" else 0} for r in tables["accuracy"].to_pylist()]
    told = said(registry.view(tables | {"accuracy": to_arrow("accuracy", undecided)}, REFERENCE))
    assert "could not be judged count as not right; dpo-lr0.0005-s0 has the most, 3 of 300." in told
    assert "No accuracy was measured" not in told
    rollouts = [r | {"gold": None, "split": "heldout"} for r in tables["rollouts"].to_pylist()[:1]]
    assert "No accuracy was measured: 0 of 1 held-out prompts have a gold answer" in said(view_of(rollouts=rollouts))


def trained(*runs):
    """What is said of runs with these options of the loss, seeds, settings and status."""
    return said(
        view_of(
            runs=[
                {"run": f"r{i}", "key": f"r{i}", "loss": "dpo", "status": status}
                | {
                    "params": json.dumps(
                        {
                            "loss": {"type": "dpo", "beta": beta},
                            "training": {"lora": None, "seed": seed, "init_seed": init_seed, **training},
                        }
                    )
                }
                for i, (beta, seed, init_seed, training, status) in enumerate(runs)
            ]
        )
    )


def test_seeds_are_counted_within_a_configuration():
    done, adapter = "finished", {"lora": {"r": 4}}
    assert trained((0.1, 0, 0, {}, done), (0.1, 1, 0, {}, done)) == ""
    assert trained((0.1, 0, 0, adapter, done), (0.1, 0, 1, adapter, done)) == ""
    assert "Every configuration" in trained((0.1, 0, 0, {}, done), (0.5, 1, 0, {}, done))
    assert "Every configuration" in trained((0.1, 0, 0, {}, done), (0.1, 1, 0, {"steps": 9}, done))
    assert "Every configuration" in trained((0.1, 0, 0, {}, done), (0.1, 0, 1, {}, done))  # nothing is initialised
    assert "Every configuration" in trained((0.1, 0, 0, {}, done), (0.1, 1, 0, {}, "diverged"))
    assert "1 of 2 configurations" in trained((0.1, 0, 0, {}, done), (0.1, 1, 0, {}, done), (0.5, 0, 0, {}, done))


def test_a_failure_without_a_reason_is_told():
    runs = [
        {"run": "a", "key": "a", "status": "failed"},
        {"run": "b", "key": "b", "status": "failed", "reason": "lost."},
    ]
    told = said(view_of(runs=runs))
    assert "a has no result: failed, no reason was recorded." in told
    assert "b has no result: failed, lost." in told


def test_single_stages_are_neither_counted_nor_blamed():
    """Two seeds of a run in two stages, and what the second stage of one of them changed."""
    training = {"lora": None, "init_seed": 0}
    rows = []
    for seed in (0, 1):
        stages = [{"label": name, "loss": {"type": name}, "training": training | {"seed": seed, "lr": 1e-5}}
                  for name in ("sft", "dpo")]  # fmt: skip
        for name, leg in (("whole", None), ("leg", 2)):
            if (name, seed) == ("leg", 1):
                continue
            loss, settings = stages[-1]["loss"], stages[-1]["training"]
            run = f"{name}{seed}"
            rows.append(RunRecord(run, run, FINISHED, loss, settings, stages=stages, leg=leg).row())
    norms = [{"run": run, "module": "m", "kind": "head", "head": 0, "norm": 1.0} for run in ("whole0", "whole1")]
    seen = view_of(runs=rows, heads=norms)
    assert not seeds(seen)
    assert not list(next_runs(seen))
    assert not any("leg0" in sentence for sentence in heads.limits(seen))
    assert any("of whole1 was looked at" in sentence for sentence in heads.limits(view_of(runs=rows, heads=norms[:1])))
    assert [fact.value for fact in facts(seen) if fact.label == "runs finished"] == ["2 of 2"]
