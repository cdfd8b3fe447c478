import numpy as np
import pytest
import torch
from connectivity_cases import compute_all, exam, noise, save_run
from torch import nn
from transformers import Qwen3ForCausalLM

from raygeo.analyses.soups.workload import Soups, SoupSettings
from raygeo.analyses.wise.workload import Wise, WiseSettings
from raygeo.data.probes import Probe, nll
from raygeo.errors import DeltaError
from raygeo.geometry.connectivity import evaluator
from raygeo.geometry.connectivity.averages import average, greedy
from raygeo.geometry.connectivity.evaluator import flips
from raygeo.models.mix import MixedWeights
from raygeo.models.run import Run
from raygeo.tables import BASE

QUICK = {"bootstrap": 100, "max_new_tokens": 3}
PROBLEMS = [(f"{word} ?", gold) for word, gold in zip("abcd", "7778", strict=True)]


@pytest.fixture
def runs(student, tmp_path):
    return [Run(BASE, "key-base", None)] + [save_run(tmp_path, f"r{s}", noise(student, s, 0.1)) for s in (1, 2, 3)]


def test_a_soup_is_the_mean_of_its_weights_bit_for_bit(tmp_path):
    # Small multiples of 2^-10, four runs: no sum and no quarter is rounded in fp64 (nor in the deltas' fp32).
    generator = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.w = nn.Parameter(torch.randint(-4096, 4096, (6, 5), generator=generator).double() / 1024)
    base = model.w.detach().clone()
    deltas = [torch.randint(-4096, 4096, (6, 5), generator=generator).double() / 1024 for _ in range(4)]
    runs = [save_run(tmp_path, f"s{i}", {"w": delta.float()}) for i, delta in enumerate(deltas)]
    with MixedWeights(model, ["w"]).mixed(average(runs)):
        assert torch.equal(model.w.detach(), torch.stack([base + delta for delta in deltas]).mean(0))
    assert torch.equal(model.w.detach(), base)


def soups(student, probe, runs, groups=None, problems=(), **settings) -> dict[str, dict]:
    workload = Soups(SoupSettings(**QUICK, **settings), runs, student, probe, exam(student, problems), groups or {})
    return {row["soup"]: row for row in compute_all(workload)["soups"]}


def test_soups_are_measured_on_the_other_half(student, probe_file, runs):
    found = soups(student, probe_file, runs, {"two": ["r1", "r3"], "one": ["r2"], "same": ["r1", "r2", "r3"]})
    assert list(found) == ["base", "r1", "r2", "r3", "uniform", "greedy", "two"]
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    kept = {name: value.clone() for name, value in model.named_parameters()}
    deltas = {f"r{s}": noise(student, s, 0.1) for s in (1, 2, 3)}
    texts = Probe.load(probe_file).sequences
    halves = [Probe("half", texts[i::2]).batches(0, 16) for i in (0, 1)]

    def loss(names, half=1):
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(kept[name] + sum(deltas[run][name] for run in names) / max(len(names), 1))
        return nll(model, halves[half])

    for name, row in found.items():
        members = [] if name == BASE else row["members"]
        assert row["nll"] == pytest.approx(loss(members), rel=1e-6)
        assert row["nll_low"] <= row["nll"] <= row["nll_high"]
        assert (row["n"], row["tokens"]) == (6, sum(s.completion_length for s in texts[1::2]))
        if row["kind"] == "run":
            assert "barrier" not in row
        elif len(members) > 1:
            apart = np.mean([loss([member]) for member in members])
            assert row["barrier"] == pytest.approx(row["nll"] - apart, abs=1e-6)
            assert row["barrier_low"] <= row["barrier"] <= row["barrier_high"]
    assert found["uniform"]["members"] == ["r1", "r2", "r3"]
    assert found["two"]["members"] == ["r1", "r3"]
    # The greedy soup by its definition, on the first half.
    order = sorted(deltas, key=lambda run: loss([run], 0))
    members, best = order[:1], loss(order[:1], 0)
    for run in order[1:]:
        if loss([*members, run], 0) <= best:
            members, best = [*members, run], loss([*members, run], 0)
    assert found["greedy"]["members"] == members


def test_a_greedy_soup_takes_what_helps_and_passes_over_what_harms():
    # Losses are squares of one weight: -1 is best alone, its mean with 1.2 is better, 4 would make it worse.
    at = {"good": -1.0, "opposite": 1.2, "far": 4.0}

    def square(terms):
        return sum(coefficient * weight for coefficient, weight in terms) ** 2

    class One(Run):
        def mixture(self, coefficient=1.0):
            return [(coefficient, at[self.name])]

    runs = [One(name, name, None) for name in ("far", "opposite", "good")]
    assert [run.name for run in greedy(runs, square)] == ["good", "opposite"]


def test_flips_count_what_all_ends_get_wrong_and_the_average_right():
    ends = [np.array([1, 1, 0, 0, 1.0]), np.array([1, 1, 0, 0, 0.0])]
    assert flips(np.array([0, 1, 1, 0, 0.0]), ends) == {"false_false_true": 0.2, "true_true_false": 0.2}
    assert flips(np.array([0, 0, 0, 0, 0.0]), ends) == {"false_false_true": 0.4, "true_true_false": 0.0}


def test_accuracy_and_flips_come_from_the_answers(student, probe_file, runs, monkeypatch):
    # What the models would answer is replaced: wrong where this table says so, by the sum of one weight.
    wrong = {"base": [1, 1, 0, 0], "r1": [1, 1, 0, 1], "r2": [1, 0, 0, 0], "r3": [1, 0, 1, 1], "mix": [0, 1, 1, 0]}
    sums = {}
    for name in ("base", "r1", "r2", "r3"):
        model = Qwen3ForCausalLM.from_pretrained(student)
        weight = model.model.embed_tokens.weight.detach()
        sums[name] = weight + (0 if name == "base" else noise(student, int(name[1]), 0.1)["model.embed_tokens.weight"])
    monkeypatch.setattr(
        evaluator.AnswerErrors,
        "sums",
        lambda self, model: np.array(
            next(
                (wrong[n] for n, w in sums.items() if torch.allclose(w, model.model.embed_tokens.weight, atol=1e-6)),
                wrong["mix"],
            ),
            dtype=float,
        ),
    )
    found = soups(student, probe_file, runs, problems=PROBLEMS, accuracy_problems=9)
    assert [found[name]["accuracy"] for name in ("base", "r1", "uniform")] == [0.5, 0.25, 0.5]
    assert (found["uniform"]["false_false_true"], found["uniform"]["true_true_false"]) == (0.25, 0)
    workload = Wise(
        WiseSettings(alphas=(0, 0.5, 1), accuracy_problems=4, **QUICK),
        runs[:2],
        student,
        probe_file,
        exam(student, PROBLEMS),
    )
    rows = compute_all(workload)["wise"]
    assert [row["accuracy"] for row in rows] == [0.5, 0.5, 0.25]
    assert [row["false_false_true"] for row in rows] == [0, 0.25, 0]
    assert [row["true_true_false"] for row in rows] == [0, 0.25, 0]
    assert {row["problems"] for row in rows} == {4}


def test_the_line_through_a_run_is_measured_on_one_half_and_chosen_on_the_other(student, probe_file, runs):
    settings = WiseSettings(alphas=(1.0, 0.0, 1.5), **QUICK)
    rows = compute_all(Wise(settings, runs, student, probe_file, None), 0)["wise"]
    assert [row["alpha"] for row in rows] == [0, 1, 1.5]
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    kept = {name: value.clone() for name, value in model.named_parameters()}
    texts = Probe.load(probe_file).sequences
    for row in rows:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(kept[name] + row["alpha"] * noise(student, 1, 0.1)[name])
        chosen, measured = (nll(model, Probe("half", texts[i::2]).batches(0, 16)) for i in (0, 1))
        assert (row["chosen_nll"], row["nll"]) == pytest.approx((chosen, measured), rel=1e-6)
        assert "accuracy" not in row
        assert 0 < row["confidence"] < 1


def test_keys_and_refusals(student, probe_file, runs, tmp_path):
    def keys(ends=runs, groups=None, **settings):
        workload = Soups(SoupSettings(**settings), ends, student, probe_file, exam(student, PROBLEMS), groups or {})
        return {task.payload[1]: task.key for task in workload.tasks()}

    assert list(keys(runs[:2])) == ["base", "r1"]
    assert len(set(keys(groups={"two": ["r1", "r2"]}).values())) == 7
    assert keys(runs[:3])["r1"] == keys()["r1"]
    assert keys(runs[:3])["uniform"] != keys()["uniform"]
    assert keys(accuracy_problems=1)["r1"] != keys()["r1"]
    assert keys(max_new_tokens=9, generation_batch_size=2) == keys(), "no problem is asked"
    assert keys(accuracy_problems=5) == keys(accuracy_problems=4), "there are four"
    assert keys(accuracy_problems=4, max_new_tokens=9)["r1"] != keys(accuracy_problems=4)["r1"]

    def wise_keys(**settings):
        workload = Wise(WiseSettings(**settings), runs[:2], student, probe_file, exam(student, PROBLEMS))
        return [task.key for task in workload.tasks()]

    assert wise_keys(max_new_tokens=9) == wise_keys()
    assert wise_keys(alphas=(0.5,)) != wise_keys() != wise_keys(accuracy_problems=1)
    bad = save_run(tmp_path, "bad", {"model.norm.weight": torch.full((16,), np.nan)})
    with pytest.raises(DeltaError, match="not finite"):
        soups(student, probe_file, [*runs, bad])
