import pytest
import yaml

from raygeo.analyses.registry import analyses
from raygeo.errors import ConfigError
from raygeo.losses import RFT, SFT
from raygeo.losses.registry import LOSSES
from raygeo.pipeline.config import load_study, parse_study, study_yaml
from raygeo.training.settings import RunSpec, TrainingSettings

LR = ("lr",)


def study(*runs, **changes):
    return parse_study(
        {"name": "t", "rollouts": {"sample": {"prompts": 8}}, "training": {"steps": 2}, "runs": list(runs)} | changes
    )


def names(*runs, **changes):
    return [spec.name for spec in study(*runs, **changes).specs()]


def test_options_of_a_loss_and_settings_of_training_may_be_lists_each_in_its_own_entry():
    found = names(
        {"loss": {"type": "dpo", "beta": [0.1, 0.5]}, "lr": ["5e-6", 1e-4], "lora": {"r": [4, 8]}, "seed": [0, 1]},
        {"loss": {"type": "sft"}},
    )
    assert len(found) == 2 * 2 * 2 * 2 + 1
    assert found[:3] == ["dpo-beta0.1-r4-lr5e-06-s0", "dpo-beta0.1-r4-lr5e-06-s1", "dpo-beta0.1-r4-lr0.0001-s0"]
    assert found[-1] == "sft-lr1e-05-s0"


def test_values_reach_the_run():
    found = study({"loss": {"type": "dpo", "beta": [0.1, "5e-1"]}, "lora": {"r": [4, 8]}, "epochs": [1, 2]}).specs()
    assert [(s.loss.beta, s.training.lora.r, s.training.epochs, s.training.steps) for s in found[-2:]] == [
        (0.5, 8, 1.0, None), (0.5, 8, 2.0, None),
    ]  # fmt: skip


def test_what_varies_for_all_runs_is_written_once_and_may_be_overridden():
    training = {"steps": [2, 3], "lr": [1e-5, 1e-4], "seed": [0, 1]}
    found = names(
        {"loss": {"type": "sft"}}, {"loss": {"type": "rft"}, "lr": 1e-3, "epochs": 1, "seed": 4}, training=training
    )
    assert len(found) == 8 + 1
    assert found[0] == "sft-steps2-lr1e-05-s0"
    assert found[-1] == "rft-lr0.001-s4"


def test_names_are_given_or_made():
    assert names({"loss": {"type": "sft"}, "name": "mine"}) == ["mine"]
    assert names({"loss": {"type": "sft"}, "name": "mine", "lr": [1e-5]}) == ["mine"]
    assert names({"loss": {"type": "sft"}, "name": "mine", "seed": [0, 1]}) == ["mine-lr1e-05-s0", "mine-lr1e-05-s1"]
    assert names({"loss": {"type": "sft"}, "lora": {"r": 2}, "init_seed": [0, 1]}) == [
        "sft-lr1e-05-s0", "sft-lr1e-05-s0-i1",
    ]  # fmt: skip


def test_one_entry_may_stand_for_every_loss():
    entry = {"loss": "all", "lr": [1e-5, 1e-4]}
    found = study({"loss": {"type": "sft"}, "name": "first"}, entry)
    assert [spec.name for spec in found.specs()][:3] == ["first", "sft-lr1e-05-s0", "sft-lr0.0001-s0"]
    assert [spec.loss for spec in found.specs()[1::2]] == [loss() for loss in LOSSES.values() if loss.in_groups]
    assert parse_study(yaml.safe_load(study_yaml(found))) == found
    assert (
        study(
            *({"loss": {"type": name}, "lr": [1e-5, 1e-4]} for name, loss in LOSSES.items() if loss.in_groups)
        ).specs()
        == study(entry).specs()
    )


def test_losses_on_rollouts_and_on_pairs_may_be_told_apart_and_some_left_out():
    left_out = ["otr", "kto", "off-policy-grpo"]
    found = study({"loss": "pointwise", "except": left_out}, {"loss": "pairwise", "batch_size": 16}).specs()
    assert {spec.loss.type for spec in found} == {name for name, loss in LOSSES.items() if loss.in_groups} - set(
        left_out
    )
    assert [spec.loss.unit == "pair" for spec in found] == [spec.training.batch_size == 16 for spec in found]
    assert {"sft", "dpo"} <= {spec.loss.type for spec in found}


def test_ranges_are_drawn_with_every_seed_and_losses_share_the_draws():
    lr = {"log_uniform": ["1e-6", "1e-3"]}
    sweep = {"search": "random", "samples": 3, "seed": 1}
    planned = study(
        {"loss": {"type": "sft"}, "lr": lr, "seed": [0, 1]},
        {"loss": {"type": "dpo", "beta": {"uniform": [0.1, 0.5]}, "pairs_per_prompt": {"uniform": [1, 3]}}, "lr": lr},
        {"loss": {"type": "rft"}, "seed": [0, 1]},
        sweep=sweep,
    ).plan.trials()
    assert [run.entry for run in planned] == [0] * 6 + [1] * 3 + [2] * 2
    rates = [run.spec.training.lr for run in planned]
    assert rates[0:6:2] == rates[1:6:2] == rates[6:9]
    assert len(set(rates[6:9])) == 3
    for run in planned[6:9]:
        beta, pairs = run.spec.loss.beta, run.spec.loss.pairs_per_prompt
        assert run.name == f"dpo-beta{beta:g}-pairs_per_prompt{pairs}-lr{run.spec.training.lr:g}-s0"
        assert isinstance(pairs, int)
        assert 0.1 <= beta <= 0.5


def test_the_same_draws_have_the_same_keys():
    entry = {"loss": {"type": "sft"}, "lr": {"uniform": [1e-5, 1e-3]}}
    specs = [study(entry, sweep={"search": "random", "samples": n}).specs() for n in (2, 4)]
    keys = [[spec.key("student", "rollouts") for spec in found] for found in specs]
    assert keys[0] == keys[1][:2]


def test_a_runs_key_tells_what_can_change_its_result(monkeypatch):
    def key(student="student", name="sft", loss=None, **training):
        settings = {"steps": 2} | training
        return RunSpec(name=name, loss=loss or SFT(), training=TrainingSettings(**settings)).key(student, "rollouts")

    before = key()
    assert before.endswith("-r1.1")
    assert {key(name="x"), key(log_every=3), key(checkpoint_every=5), key(restarts=0)} == {before}
    changed = [key(student="y"), key(loss=SFT(prompts="mixed")), key(lr=1e-3), key(workers=2), key(micro_batch_size=4)]
    monkeypatch.setattr(SFT, "revision", 2)
    changed.append(key())
    monkeypatch.setattr("raygeo.training.settings.REVISION", 3)
    changed.append(key())
    assert [made.partition("-r")[2] for made in changed] == ["1.1"] * 5 + ["1.2", "3.2"]
    assert len({before, *changed}) == 8
    assert key(loss=RFT()).endswith("-r3.1")


def test_a_scheduler_has_the_held_out_nll_measured():
    sweep = {"scheduler": {"type": "asha", "grace": 7}}
    found = study({"loss": {"type": "sft"}}, {"loss": {"type": "rft"}, "eval_every": 3}, sweep=sweep).specs()
    assert [spec.training.eval_every for spec in found] == [7, 3]
    assert study({"loss": {"type": "sft"}}, sweep={"scheduler": "none"}).specs()[0].training.eval_every is None


def test_optuna_leaves_what_varies_open_and_the_rest_known():
    plan = study(
        {"loss": {"type": "sft"}, "seed": [0, 1]},
        {"loss": {"type": "grpo", "surrogate": ["logp", "ppo"]}, "lr": {"uniform": [1e-5, 1e-4]}, "seed": [0, 1]},
        sweep={"search": "optuna"},
    ).plan
    assert [run.name for run in plan.trials()] == ["sft-lr1e-05-s0", "sft-lr1e-05-s1"]
    assert plan.open_entries() == [1]
    assert set(plan.searched(1)) == {("loss", "surrogate"), LR}
    assert {need for spec in plan.points() for need in spec.loss.needs} == {"reference"}
    chosen = plan.runs_of(1, {("loss", "surrogate"): "ppo", LR: 2e-5})
    assert [run.name for run in chosen] == ["grpo-surrogate=ppo-lr2e-05-s0", "grpo-surrogate=ppo-lr2e-05-s1"]


def test_a_study_with_lists_and_ranges_survives_a_round_trip():
    first = study(
        {"loss": {"type": "dpo", "beta": [0.1, 0.5]}, "lr": {"log_uniform": ["1e-6", 1e-3]}, "lora": None},
        training={"seed": [0, 1], "lora": {"r": [2, 4]}},
        sweep={
            "search": "random",
            "scheduler": {"type": "asha"},
            "objectives": [{"metric": "geometry/top_eigenvalue"}],
        },
    )
    assert parse_study(yaml.safe_load(study_yaml(first))) == first


def test_an_override_may_be_a_range(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(study_yaml(study({"loss": {"type": "sft"}}, sweep={"search": "random", "samples": 2})))
    assert len(load_study(file, ["training.lr={log_uniform: [1e-6, 1e-3]}"]).specs()) == 2


@pytest.mark.parametrize(
    ("entry", "changes", "said"),
    [
        ({"loss": {"type": "dpo", "beta": [0.1, -1]}}, {}, r"runs.0.loss.dpo.beta: .*greater than 0 \(read -1\)"),
        ({"loss": {"type": "dpo", "betta": [0.1, 1]}}, {}, "betta: unknown key; did you mean 'beta'?"),
        ({"loss": {"type": "sft", "beta": [0.1, 1]}}, {}, "loss.sft.beta: unknown key"),
        ({"loss": {"type": "dop"}}, {}, r"runs.0.loss: 'dop' is not a loss \(did you mean 'dpo'\?\); the types"),
        ({"loss": "dpo"}, {}, "runs.0.loss: a loss is written {type: dpo}; all, pointwise, pairwise stand for several"),
        ({"loss": "all", "name": "x"}, {}, "runs.0.name: one name cannot be that of all losses"),
        ({"loss": "all", "lrr": 1}, {}, "runs.0.lrr: unknown key; did you mean 'lr'?"),
        ({"loss": "all", "except": ["sftt"]}, {}, r"runs.0.except: 'sftt' is not a loss \(did you mean 'sft'"),
        ({"loss": "all", "except": "sft"}, {}, "runs.0.except: give a list"),
        ({"loss": {"type": "sft"}, "except": ["sft"]}, {}, "runs.0.except: unknown key"),
        ({"loss": "all", "except": list(LOSSES)}, {}, "runs: .*at least 1 item"),
        ({"loss": {"type": "sft"}, "lora": {"rr": [1, 2]}}, {}, "lora.rr: unknown key; did you mean 'r'?"),
        ({"loss": {"type": "sft"}, "lr": {"uniform": [1, 2]}}, {}, r"runs.0.lr: a grid takes lists.*sweep.search"),
        ({"loss": {"type": "sft"}}, {"training": {"lr": {"uniform": [1, 2]}}}, "training.lr: a grid takes lists"),
        ({"loss": {"type": "sft"}, "lr": {"unifrom": [1, 2]}}, {}, r"runs.0.lr: a range is written {uniform"),
        ({"loss": {"type": "sft"}, "lr": [1e-5, 1e-5]}, {}, "appear more than once"),
        ({"loss": {"type": "sft"}, "steps": [1, 2], "epochs": 1}, {}, "either steps or epochs"),
        ({"loss": {"type": "sft"}}, {"sweep": {"search": "bayes"}}, "sweep.search: .*'optuna'"),
        ({"loss": {"type": "sft"}}, {"sweep": {"scheduler": {"type": "asha", "grase": 1}}}, "did you mean 'grace'"),
        ({"loss": {"type": "sft"}}, {"sweep": {"objectives": []}}, "sweep.objectives: .*at least 1"),
        ({"loss": {"type": "sft"}}, {"sweep": {"objectives": [{"metric": "eval/accuracy"}] * 2}}, "metric of its own"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(entry, changes, said):
    with pytest.raises(ConfigError, match=said):
        study(entry, **changes)


def test_a_sweep_needs_held_out_prompts():
    with pytest.raises(ConfigError, match=r"rollouts\.heldout"):
        study({"loss": {"type": "sft"}}, sweep={}, rollouts={"sample": {"prompts": 8}, "heldout": 0},
              geometry={name: None for name, analysis in analyses().items() if analysis.needs})  # fmt: skip


def test_optuna_needs_to_tell_entries_of_one_loss_apart():
    entry = {"loss": {"type": "sft"}, "lr": [1e-5, 1e-4]}
    with pytest.raises(ConfigError, match=r"runs.0.name: .*give each entry"):
        study(entry, entry, sweep={"search": "optuna"})
    assert study(entry | {"name": "a"}, entry | {"name": "b"}, sweep={"search": "optuna"}).specs() == []


def test_the_reference_run_must_be_known():
    entry = {"loss": {"type": "sft"}, "lr": [1e-5, 1e-4]}
    with pytest.raises(ConfigError, match="chosen by the sweep; leave it out"):
        study(entry, sweep={"search": "optuna"}, reference_run="sft-lr1e-05-s0")


def test_more_accuracy_is_better_and_less_of_anything_else():
    metrics = ("eval/accuracy", "eval/heldout/nll", "geometry/top_eigenvalue")
    found = study({"loss": {"type": "sft"}}, sweep={"objectives": [{"metric": metric} for metric in metrics]})
    assert found.judged.modes == ["max", "min", "min"]
    [objective] = study({"loss": {"type": "sft"}}, sweep={}).judged.objectives
    assert (objective.metric, objective.mode) == ("eval/heldout/accuracy", "max")
