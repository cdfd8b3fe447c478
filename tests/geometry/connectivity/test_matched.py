"""Runs at equal distance from the base: exact norms, divergences recomputed in fp64, and paired comparisons."""

import math

import numpy as np
import pytest
import torch
from connectivity_cases import compute_all, exam, noise, save_run
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl
from transformers import Qwen3ForCausalLM

from raygeo.analyses.matched.workload import KL, NORM, TRAINED, Matched, MatchedSettings
from raygeo.analyses.outputs.workload import Outputs, OutputSettings
from raygeo.data.probes import Probe, nll
from raygeo.errors import ConfigError, DeltaError
from raygeo.evaluation.statistics import holm, mcnemar
from raygeo.geometry.connectivity import evaluator, matching
from raygeo.geometry.connectivity.matching import Unreachable, scale_for
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

QUICK = {"bootstrap": 100, "max_new_tokens": 3}
SIZES = {"r1": 0.1, "r2": 0.06, "r3": 0.3}
PROBLEMS = [(f"{word} ?", gold) for word, gold in zip("abcd", "7778", strict=True)]


@pytest.fixture
def runs(student, tmp_path):
    """The base and three runs that moved differently far."""
    return [Run(BASE, "key-base", None)] + [
        save_run(tmp_path, name, noise(student, int(name[1]), size)) for name, size in SIZES.items()
    ]


def workload(student, probe_file, runs, problems=(), reference="r1", **settings) -> Matched:
    options = MatchedSettings(**QUICK | settings)
    return Matched(options, runs, student, probe_file, exam(student, problems), reference)


def points(made: Matched, *indices: int) -> dict[tuple[str, str], dict]:
    return {(row["run"], row["quantity"]): row for row in compute_all(made, *indices)["matched"]}


class Asked:
    """A distance, and at which scales it was asked for."""

    def __init__(self, distance):
        self.distance, self.at = distance, []

    def __call__(self, scale):
        self.at.append(scale)
        return self.distance(scale)


@pytest.mark.parametrize(
    ("distance", "root"),
    [
        (lambda s: 0.3 * s**2, lambda t: math.sqrt(t / 0.3)),
        (lambda s: s**2 + s**4, lambda t: math.sqrt((math.sqrt(1 + 4 * t) - 1) / 2)),
        (lambda s: 1 - math.exp(-(s**2)), lambda t: math.sqrt(-math.log(1 - t))),
        (lambda s: math.expm1(3 * s**2), lambda t: math.sqrt(math.log1p(t) / 3)),
    ],
)
@pytest.mark.parametrize("target", [1e-6, 0.02, 0.5])
def test_scales_are_those_of_closed_forms_in_few_steps(distance, root, target):
    asked = Asked(distance)
    found = scale_for(asked, target, most=4.0, tolerance=1e-6)
    assert found == pytest.approx(root(target), rel=1e-6)
    assert distance(found) == pytest.approx(target, rel=1e-6)
    assert len(asked.at) == len(set(asked.at)) <= 12


def test_a_run_that_is_at_the_distance_stays_as_it_was_trained():
    asked = Asked(lambda s: 0.3 * s**2)
    assert scale_for(asked, 0.295, most=2.0, tolerance=0.02) == 1.0
    assert asked.at == [1.0]


def test_what_cannot_be_reached_says_why(monkeypatch):
    asked = Asked(lambda s: 0.1 * s**2)
    with pytest.raises(Unreachable, match=r"at scale 3, the largest that is tried, it is at 0\.9 of 1$"):
        scale_for(asked, 1.0, most=3.0, tolerance=0.01)
    assert asked.at == [1.0, 2.0, 3.0]
    with pytest.raises(Unreachable, match="not finite at scale 2"):
        scale_for(lambda s: 0.1 if s <= 1 else math.inf, 1.0, most=2.0, tolerance=0.01)
    monkeypatch.setattr(matching, "STEPS", 3)
    with pytest.raises(Unreachable, match="no scale was found in 3 steps between 0 and 1"):
        scale_for(lambda s: float(s > 0.3), 0.5, most=2.0, tolerance=0.01)


def dense_divergence(student, delta, scale, texts) -> float:
    """Token mean of KL(base || base + scale delta), both in fp64, text by text."""
    base = Qwen3ForCausalLM.from_pretrained(student).eval().double()
    moved = Qwen3ForCausalLM.from_pretrained(student).eval().double()
    with torch.no_grad():
        for name, value in moved.named_parameters():
            value.add_(scale * delta[name].double())
        total, tokens = 0.0, 0
        for text in texts:
            ids = torch.from_numpy(text.ids)[None]
            p, q = (Categorical(logits=m(ids).logits[0, text.prompt_length - 1 : -1]) for m in (base, moved))
            total, tokens = total + float(torch_kl(p, q).sum()), tokens + text.completion_length
    return total / tokens


def test_norms_are_exact_and_divergences_those_of_dense_weights_in_fp64(student, probe_file, runs):
    found = points(workload(student, probe_file, runs, tolerance=1e-3))
    assert list(found) == [(BASE, TRAINED)] + [(run, q) for run in SIZES for q in (TRAINED, NORM, KL)]
    deltas = {name: noise(student, int(name[1]), size) for name, size in SIZES.items()}
    norms = {n: math.sqrt(sum(float(v.double().square().sum()) for v in d.values())) for n, d in deltas.items()}
    texts = Probe.load(probe_file).sequences
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    kept = {name: value.clone() for name, value in model.named_parameters()}
    half = Probe("half", texts[1::2]).batches(0, 16)
    target = dense_divergence(student, deltas["r1"], 1.0, texts)
    for (name, quantity), row in found.items():
        if name == BASE:
            assert (row["norm"], row["kl"], row["target"]) == (0, pytest.approx(0, abs=1e-9), None)
            continue
        assert row["norm"] == pytest.approx(row["scale"] * norms[name], rel=1e-6)
        assert row["kl"] == pytest.approx(dense_divergence(student, deltas[name], row["scale"], texts), rel=1e-4)
        if quantity == TRAINED:
            assert (row["scale"], row["target"]) == (1, None)
        elif quantity == NORM:
            assert row["target"] == pytest.approx(norms["r1"], rel=1e-6)
            assert row["scale"] == pytest.approx(norms["r1"] / norms[name], rel=1e-6)
            assert row["norm"] == pytest.approx(row["target"], rel=1e-12)
        else:
            assert row["target"] == pytest.approx(target, rel=1e-4)
            assert row["kl"] == pytest.approx(row["target"], rel=1e-3)
            assert dense_divergence(student, deltas[name], row["scale"], texts) == pytest.approx(target, rel=2e-3)
        with torch.no_grad():
            for parameter, value in model.named_parameters():
                value.copy_(kept[parameter] + row["scale"] * deltas[name][parameter])
        assert row["nll"] == pytest.approx(nll(model, half), rel=1e-6)
        assert (row["n"], row["tokens"]) == (6, sum(s.completion_length for s in texts[1::2]))
        assert "accuracy" not in row
    assert [found["r1", quantity]["scale"] for quantity in (NORM, KL)] == [1, 1]
    assert found["r2", KL]["scale"] > 1 > found["r3", KL]["scale"]


def test_the_divergence_is_that_of_the_table_divergences(student, probe_file, runs):
    outputs = Outputs(OutputSettings(pairs="base", bootstrap=100), runs, student, probe_file, "r1")
    state = outputs.setup()
    table = {
        row["run_b"]: row["value"]
        for task in outputs.tasks()
        for row in outputs.compute(state, task.payload).get("divergences", [])
        if row["run_a"] == BASE and row["quantity"] == "kl_ab"
    }
    found = points(workload(student, probe_file, runs))
    assert {run: found[run, TRAINED]["kl"] for run in SIZES} == pytest.approx(table, rel=1e-12)


def test_distances_that_are_given_need_no_reference(student, probe_file, runs):
    made = workload(student, probe_file, runs, norm=0.5, kl=1e-3, reference="gone", tolerance=0.01)
    found = points(made, 1)
    assert found["r1", NORM]["norm"] == pytest.approx(0.5, rel=1e-12)
    assert found["r1", KL]["kl"] == pytest.approx(1e-3, rel=0.01)
    assert found["r1", KL]["target"] == 1e-3
    for given in ({}, {"norm": 0.5}, {"kl": 0.1}):
        with pytest.raises(ConfigError, match="'gone', which is not among the trained runs here; give geometry"):
            workload(student, probe_file, runs, reference="gone", **given)
    with pytest.raises(ConfigError, match="'base'"):
        workload(student, probe_file, runs, reference=BASE)


def test_a_run_without_a_point_says_why_and_the_others_have_theirs(student, probe_file, runs, tmp_path):
    still = save_run(tmp_path, "still", {"model.norm.weight": torch.zeros(16)})
    lost = save_run(tmp_path, "lost", {"model.norm.weight": torch.full((16,), math.inf)})
    short = save_run(tmp_path, "short", noise(student, 1, 0.01))
    made = workload(student, probe_file, [*runs[:2], still, lost, short])
    found = points(made)
    assert {key: row["reason"] for key, row in found.items() if "reason" in row} == {
        ("still", NORM): "its delta is zero",
        ("still", KL): "its delta is zero",
        **{("lost", q): "it has diverged: its predictions are not finite" for q in (TRAINED, NORM, KL)},
        ("short", NORM): "it needs scale 10, and 2 is the largest",
        ("short", KL): found["short", KL]["reason"],
    }
    assert found["short", KL]["reason"].startswith("at scale 2, the largest that is tried, it is at ")
    assert found["short", KL]["target"] == found["r1", KL]["kl"]
    for key in (("still", NORM), ("lost", TRAINED), ("short", KL)):
        assert not {"scale", "norm", "kl", "nll"} & set(found[key])
    assert (found["still", TRAINED]["norm"], found["still", TRAINED]["nll"]) == (0, found[BASE, TRAINED]["nll"])
    wider = workload(student, probe_file, [*runs[:2], short], max_scale=32)
    row = points(wider, 2)["short", KL]
    assert row["kl"] == pytest.approx(row["target"], rel=0.02)
    assert row["scale"] == pytest.approx(10, rel=0.05), "it is the reference's own delta, ten times as small"
    for bad, distance in ((still, "0"), (lost, "nan")):
        made = workload(student, probe_file, [*runs, bad], reference=bad.name)
        with pytest.raises(DeltaError, match=f"{bad.name}, the reference run, is at a distance of {distance} from"):
            compute_all(made, 1)


@pytest.mark.slow
def test_runs_are_compared_with_the_reference_at_the_same_distance(student, probe_file, runs, monkeypatch):
    # What the models would answer is replaced: it depends on how far one weight has moved.
    start = Qwen3ForCausalLM.from_pretrained(student).model.embed_tokens.weight.detach()
    asked = {}

    def wrong(self, model):
        moved = round(float((model.model.embed_tokens.weight.detach() - start).norm()), 3)
        asked.setdefault(moved, np.random.default_rng(int(1000 * moved)).integers(0, 2, size=40))
        return (asked[moved] if moved else np.arange(40) % 2).astype(float)

    monkeypatch.setattr(evaluator.AnswerErrors, "sums", wrong)
    made = workload(student, probe_file, runs, [PROBLEMS[0]] * 40, accuracy_problems=40, bootstrap=2000)
    found = compute_all(made)
    columns = made.tables["matched_examples"]
    examples = to_arrow("matched_examples", found["matched_examples"], columns)
    tests = made.aggregate({"matched_examples": examples})["matched_tests"]
    assert to_arrow("matched_tests", tests, made.tables["matched_tests"]).num_rows == 6
    assert [(row["quantity"], row["run"]) for row in tests] == [
        (q, r) for q in (TRAINED, NORM, KL) for r in ("r2", "r3")
    ]
    rows = {(row["run"], row["quantity"]): row for row in found["matched"]}
    given = {(row["run"], row["quantity"]): np.array(row["wrong"]) for row in found["matched_examples"]}
    base = np.arange(40) % 2
    for key, row in rows.items():
        assert row["accuracy"] == 1 - given[key].mean()
        assert row["false_false_true"] == (base & (1 - given[key])).mean()
        assert row["true_true_false"] == ((1 - base) & given[key]).mean()
    for quantity in (TRAINED, NORM, KL):
        mine = [row for row in tests if row["quantity"] == quantity]
        for row in mine:
            one, other = given[row["run"], quantity], given["r1", quantity]
            test = mcnemar(*({str(i): not x for i, x in enumerate(each)} for each in (one, other)))
            assert (row["only_run"], row["only_reference"], row["p_exact"]) == (test.only_a, test.only_b, test.p_exact)
            gap = rows[row["run"], quantity]["accuracy"] - rows["r1", quantity]["accuracy"]
            assert row["accuracy"] == pytest.approx(gap, abs=1e-12)
            half = 1.96 * np.std(other - one) / math.sqrt(40)
            assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((gap - half, gap + half), abs=0.04)
            apart = rows[row["run"], quantity]["nll"] - rows["r1", quantity]["nll"]
            assert row["nll"] == pytest.approx(apart, abs=1e-12)
            assert row["nll_low"] <= row["nll"] <= row["nll_high"]
        assert [row["p_holm"] for row in mine] == holm([row["p_exact"] for row in mine])


def test_without_problems_or_the_reference_less_is_compared(student, probe_file, runs):
    made = workload(student, probe_file, runs)
    columns = made.tables["matched_examples"]
    examples = to_arrow("matched_examples", compute_all(made)["matched_examples"], columns)
    tests = made.aggregate({"matched_examples": examples})["matched_tests"]
    assert len(tests) == 6
    assert not {"accuracy", "p_exact", "p_holm"} & set().union(*tests)
    other = workload(student, probe_file, runs, norm=1, kl=1, reference="gone")
    assert other.aggregate({"matched_examples": examples}) == {"matched_tests": []}


def test_keys_depend_on_the_reference_where_its_distances_are_wanted(student, probe_file, runs):
    def keys(reference="r1", **settings):
        made = workload(student, probe_file, runs, PROBLEMS, reference, **settings)
        return [task.key for task in made.tasks()]

    assert len(set(keys())) == 4
    assert not set(keys()) & set(keys("r2"))
    assert keys(norm=1.0, kl=0.1) == keys("r2", norm=1.0, kl=0.1)
    assert not set(keys(norm=1.0)) & set(keys("r2", norm=1.0))
    assert keys(max_new_tokens=9) == keys(), "no problem is asked"
    assert len({keys(**s)[0] for s in ({}, {"max_scale": 3}, {"tolerance": 0.1}, {"accuracy_problems": 1})}) == 4
