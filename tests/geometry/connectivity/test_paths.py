import json
import math

import numpy as np
import pytest
import torch
from connectivity_cases import (
    ASK,
    EIGHT,
    EOS,
    MARK,
    SEVEN,
    V,
    compute_all,
    exam,
    noise,
    save_run,
)
from safetensors.torch import save_file
from tiny import save_words, ten_words
from transformers import Qwen3ForCausalLM

from raygeo.analyses.matched_paths.workload import MatchedPaths, MatchedPathsSettings
from raygeo.analyses.paths.workload import Paths, PathsSettings
from raygeo.data.probes import Probe, nll
from raygeo.errors import DataError, DeltaError
from raygeo.geometry.connectivity.barriers import barrier, barrier_intervals
from raygeo.geometry.connectivity.paths import straight_path
from raygeo.models.batches import TokenSequence
from raygeo.models.delta import ADAPTER_FILE
from raygeo.models.loading import load_student
from raygeo.models.mix import MixedWeights
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow


@pytest.fixture(scope="module")
def bigram(tmp_path_factory):
    """A student whose blocks are silent and whose embeddings are one-hot: logits are one row of the unembedding."""
    model = ten_words(tie_word_embeddings=False, rms_norm_eps=1e-12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_() if parameter.ndim == 2 else parameter.fill_(1)
        model.model.embed_tokens.weight[:, :V] = torch.eye(V)
    folder = tmp_path_factory.mktemp("bigram")
    model.save_pretrained(folder)
    save_words(folder)
    return folder


def table(entries: dict[tuple[int, int], float]) -> torch.Tensor:
    """Unembedding that adds ``entries[previous, next]`` to the logits; the norm scales a one-hot vector by sqrt(16)."""
    weight = torch.zeros(V, 16)
    for (previous, following), logit in entries.items():
        weight[following, previous] = logit / 4
    return weight


def answering(folder, name: str, digit: int, strength: float) -> Run:
    steps = {(ASK, MARK): 9.0, (MARK, digit): strength, (digit, EOS): 9.0}
    return save_run(folder, name, {"lm_head.weight": table(steps)})


def answers(*digits: int) -> Probe:
    return Probe("gold", [TokenSequence(np.array([6 + i % 4, ASK, MARK, d, EOS]), 3) for i, d in enumerate(digits)])


def compute(workload: Paths, index: int = 0) -> tuple[list[dict], list[dict]]:
    rows = workload.compute(workload.setup(), workload.tasks()[index].payload)
    for name, found in rows.items():
        assert to_arrow(name, found, workload.tables[name]).num_rows == len(found)
    return rows["paths"], rows["barriers"]


def logsumexp(*logits: float) -> float:
    return math.log(sum(map(math.exp, logits)) + V - len(logits))


def test_loss_along_a_path_has_its_closed_form(bigram, tmp_path):
    answers(SEVEN, SEVEN, EIGHT).save(tmp_path / "gold.npz")
    runs = [answering(tmp_path, "seven", SEVEN, 3.0), answering(tmp_path, "eight", EIGHT, 2.0)]
    workload = Paths(PathsSettings(points=5), runs, bigram, {"gold": str(tmp_path / "gold.npz")})
    paths, (found,) = compute(workload)
    assert [row["alpha"] for row in paths] == [0, 0.25, 0.5, 0.75, 1]
    losses = []
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        seven, eight, end7, end8 = 3 * (1 - alpha), 2 * alpha, 9 * (1 - alpha), 9 * alpha
        say7 = logsumexp(seven, eight) - seven + logsumexp(end7) - end7
        say8 = logsumexp(seven, eight) - eight + logsumexp(end8) - end8
        losses.append((2 * say7 + say8) / 6)
    assert [row["nll"] for row in paths] == pytest.approx(losses, rel=1e-5)
    assert {(row["metric"], row["probe"], row["n"], row.get("accuracy")) for row in paths} == {("nll", "gold", 3, None)}
    # The loss is convex in the unembedding, so the path stays under its chord.
    assert (found["chord"], found["chord_alpha"], found["chord_low"], found["chord_high"]) == (0, 0, 0, 0)
    assert found["mean"] == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2, rel=1e-5)


def test_two_wells_joined_over_a_hill(bigram, tmp_path):
    # Flipping the sign of both the final norm and the unembedding changes nothing; half way both vanish.
    answers(SEVEN, SEVEN).save(tmp_path / "gold.npz")
    steps = {(MARK, SEVEN): 5.0, (SEVEN, EOS): 5.0}
    runs = [
        save_run(tmp_path, "plain", {"lm_head.weight": table(steps)}),
        save_run(tmp_path, "flipped", {"lm_head.weight": -table(steps), "model.norm.weight": torch.full((16,), -2.0)}),
    ]
    paths, (found,) = compute(Paths(PathsSettings(), runs, bigram, {"gold": str(tmp_path / "gold.npz")}))
    well = logsumexp(5.0) - 5
    assert [paths[0]["nll"], paths[-1]["nll"]] == pytest.approx([well, well], rel=1e-5)
    assert (found["chord_alpha"], found["mean_alpha"]) == (0.5, 0.5)
    height = pytest.approx(math.log(V) - well, rel=1e-5)
    assert [found[key] for key in ("chord", "mean", "chord_low", "chord_high")] == [height] * 4


def test_a_straight_path_in_a_notebook_is_that_of_a_study(bigram, tmp_path):
    answers(SEVEN, SEVEN, EIGHT).save(tmp_path / "gold.npz")
    texts = [("a ? ####", "7"), ("b ? ####", "7"), ("c ? ####", "8")]
    steps = {(MARK, SEVEN): 5.0, (SEVEN, EOS): 5.0}
    turned = {"lm_head.weight": -table(steps), "model.norm.weight": torch.full((16,), -2.0)}
    runs = [save_run(tmp_path, "plain", {"lm_head.weight": table(steps)}), save_run(tmp_path, "flipped", turned)]
    model, tokenizer = load_student(bigram)
    probe = Probe.of(texts, tokenizer)
    kept = {name: value.detach().clone() for name, value in model.named_parameters()}
    for a, b in (runs, [Run(BASE, "key-base", None), runs[1]]):
        rows, (expected,) = compute(Paths(PathsSettings(), [a, b], bigram, {"gold": str(tmp_path / "gold.npz")}))
        path = straight_path(model, a.open(), b.open(), probe)
        assert path.alphas.tolist() == [row["alpha"] for row in rows]
        assert path.means.tolist() == [row["nll"] for row in rows]
        assert path.sums.shape == (len(rows), 3)
        found = barrier(path.alphas, path.means)._asdict()
        found |= barrier_intervals(path.alphas, path.sums, path.counts).columns()
        assert found == {name: expected[name] for name in found}
    assert all(torch.equal(value, kept[name]) for name, value in model.named_parameters())
    with pytest.raises(DataError, match="no sequences"):
        Probe.of([], tokenizer)


def test_accuracy_along_a_path(bigram, tmp_path):
    runs = [answering(tmp_path, "seven", SEVEN, 3.0), answering(tmp_path, "eight", EIGHT, 2.0)]
    problems = [(f"{word} ?", gold) for word, gold in zip("abcd", "7778", strict=True)]
    settings = PathsSettings(points=3, max_new_tokens=6, generation_batch_size=3)
    paths, (found,) = compute(Paths(settings, runs, bigram, {}, exam(bigram, problems)))
    # "7" wins while 3 (1 - alpha) > 2 alpha, that is below 0.6.
    accuracies = {row["alpha"]: row["accuracy"] for row in paths}
    assert accuracies == {0: 0.75, 0.25: 0.75, 0.5: 0.75, 0.75: 0.25, 1: 0.25}
    labels = {(row["metric"], row["probe"], row["n"], row.get("nll")) for row in paths}
    assert labels == {("accuracy", "problems", 4, None)}
    assert found["chord"] == pytest.approx(0.75 - (0.25 * 0.25 + 0.75 * 0.75))
    assert (found["chord_alpha"], found["mean"], found["mean_alpha"]) == (0.75, 0.25, 0.75)
    assert 0 <= found["chord_low"] <= found["chord"] <= found["chord_high"]


def test_only_the_first_problems_are_asked_and_none_turns_accuracy_off(bigram, tmp_path):
    runs = [answering(tmp_path, "seven", SEVEN, 3.0), answering(tmp_path, "eight", EIGHT, 2.0)]
    problems = [("a ?", "7"), ("b ?", "8"), ("c ?", "8")]
    settings = PathsSettings(accuracy_problems=1, max_new_tokens=4)
    assert {row["n"] for row in compute(Paths(settings, runs, bigram, {}, exam(bigram, problems)))[0]} == {1}
    assert compute(Paths(PathsSettings(accuracy_problems=0), runs, bigram, {}, exam(bigram, problems))) == ([], [])


def test_paths_equal_dense_interpolation(student, probe_file, runs, tmp_path):
    settings = PathsSettings(points=5, batch_size=4)
    workload = Paths(settings, runs, student, {"texts": probe_file})
    pairs = [tuple(run.name for run in task.payload) for task in workload.tasks()]
    assert pairs == [("base", "r1"), ("base", "r2"), ("r1", "r2")]
    state = workload.setup()
    kept = {name: value.clone() for name, value in state.student.model.named_parameters()}
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    deltas = {"base": {}, "r1": noise(student, 1), "r2": noise(student, 2)}
    batches = Probe.load(probe_file).batches(0, 16)
    for task in workload.tasks():
        a, b = task.payload
        for row in workload.compute(state, task.payload)["paths"]:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    first, second = (deltas[run.name].get(name, torch.zeros(())) for run in (a, b))
                    parameter.copy_(kept[name] + (1 - row["alpha"]) * first + row["alpha"] * second)
            assert row["nll"] == pytest.approx(nll(model, batches), rel=1e-6)
    for name, value in state.student.model.named_parameters():
        assert torch.equal(value, kept[name]), "compute must put the base weights back"


def test_mixture_is_the_dense_interpolation(student, runs):
    model = Qwen3ForCausalLM.from_pretrained(student)
    kept = {name: value.detach().clone() for name, value in model.named_parameters()}
    first, second = noise(student, 1), noise(student, 2)
    weights = MixedWeights(model, kept)
    for alpha in (0.0, 0.3, 1.0):
        with weights.mixed([*runs[0].mixture(1 - alpha), *runs[1].mixture(alpha)]):
            for name, value in model.named_parameters():
                expected = kept[name].double() + (1 - alpha) * first[name].double() + alpha * second[name].double()
                torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)


def test_low_rank_and_full_deltas_give_the_same_path(student, probe_file, runs, tmp_path):
    generator = torch.Generator().manual_seed(9)
    shapes = {"q_proj": (16, 16), "v_proj": (8, 16), "o_proj": (16, 16)}
    factors, dense = {}, {}
    for module, (out, into) in shapes.items():
        a, b = (torch.randn(s, generator=generator) for s in ((3, into), (out, 3)))
        name = f"model.layers.0.self_attn.{module}"
        factors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        dense[f"{name}.weight"] = 0.5 * b @ a
    (tmp_path / "lora").mkdir()
    save_file(factors, tmp_path / "lora" / ADAPTER_FILE)
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 1.5}))
    (paths_lora, (barrier_lora,)), (paths_full, (barrier_full,)) = (
        compute(Paths(PathsSettings(points=5), [runs[0], run], student, {"texts": probe_file}))
        for run in (Run("lora", "key-lora", str(tmp_path / "lora")), save_run(tmp_path, "full", dense))
    )
    assert [r["nll"] for r in paths_lora] == pytest.approx([r["nll"] for r in paths_full], rel=1e-6)
    assert barrier_lora["mean_high"] == pytest.approx(barrier_full["mean_high"], rel=1e-5)
    assert len({round(r["nll"], 4) for r in paths_lora}) == 5


def test_ends_are_evaluated_once_an_actor(student, probe_file, runs, monkeypatch):
    import raygeo.geometry.connectivity.measures as module

    calls = []
    inner = module.sequence_nlls
    monkeypatch.setattr(module, "sequence_nlls", lambda *args: calls.append(1) or inner(*args))
    workload = Paths(PathsSettings(points=4, refine=0), runs, student, {"one": probe_file, "two": probe_file})
    state = workload.setup()
    rows = [workload.compute(state, task.payload)["paths"] for task in workload.tasks()]
    assert len(calls) == 2 * (3 + 3 * 2), "two probes, three ends, three pairs with two inner points"
    fresh = workload.setup()
    assert rows[2] == workload.compute(fresh, workload.tasks()[2].payload)["paths"]


def test_pairs_and_keys(student, probe_file, runs):
    def tasks(**settings):
        return Paths(
            PathsSettings(**settings), runs, student, {"texts": probe_file}, exam(student, [("a ?", "7")])
        ).tasks()

    def pairs(**settings):
        return [tuple(run.name for run in task.payload) for task in tasks(**settings)]

    assert pairs(pairs="base") == [("base", "r1"), ("base", "r2")]
    assert pairs(include_base=False) == [("r1", "r2")]
    keys = [task.key for task in tasks()]
    assert len(set(keys)) == 3
    assert keys == [task.key for task in tasks()]
    assert not set(keys) & {task.key for task in tasks(seed=1)}
    assert [task.key for task in tasks(include_base=False)] == keys[2:], "which pairs are joined is not in a pair's key"
    assert keys == [task.key for task in tasks(accuracy_problems=9)], "there is one problem"
    answered = {"accuracy_points": 3, "max_new_tokens": 9, "generation_batch_size": 2}
    for name, value in answered.items():
        assert not set(keys) & {task.key for task in tasks(**{name: value})}
    unasked = [task.key for task in tasks(accuracy_problems=0)]
    assert unasked == [task.key for task in tasks(accuracy_problems=0, **answered)]
    asked = [
        Paths(PathsSettings(accuracy_problems=n), runs, student, {}, exam(student, [("a ?", "7")])) for n in (0, 1)
    ]
    own = {"paths": Paths.revision}
    assert [each.revisions for each in asked] == [own, own | {"grading": 2, "renderer plain": 2, "engine local": 1}]
    assert not set(keys) & set(unasked)
    retrained = [runs[0], Run("r2", "other", runs[1].delta), runs[2]]
    again = Paths(PathsSettings(), retrained, student, {"texts": probe_file}, exam(student, [("a ?", "7")])).tasks()
    assert [task.key == key for task, key in zip(again, keys, strict=True)] == [True, False, False]


def test_a_diverged_end_and_a_reserved_name_are_refused(student, probe_file, runs, tmp_path):
    bad = save_run(tmp_path, "bad", {"model.norm.weight": torch.full((16,), math.nan)})
    with pytest.raises(DeltaError, match="not finite"):
        compute(Paths(PathsSettings(points=3), [runs[0], bad], student, {"texts": probe_file}))
    with pytest.raises(DataError, match="'problems'"):
        Paths(PathsSettings(), runs, student, {"problems": probe_file})


def test_points_beyond_the_ends_are_measured_and_have_no_part_in_barriers(student, probe_file, runs):
    plain, beyond = (
        compute_all(Paths(PathsSettings(points=5, beyond=n, refine=0), runs[:2], student, {"texts": probe_file}))
        for n in (0, 1)
    )
    assert [row["alpha"] for row in beyond["paths"]] == [-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25]
    assert beyond["paths"][1:-1] == plain["paths"]
    assert beyond["barriers"] == plain["barriers"]
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    first, second = noise(student, 1), noise(student, 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 1.25 * first[name] - 0.25 * second[name]
    assert beyond["paths"][0]["nll"] == pytest.approx(nll(model, Probe.load(probe_file).batches(0, 16)), rel=1e-6)


def test_a_hump_between_grid_points_is_refined_for_all_probes_alike(bigram, tmp_path):
    # Both the final norm and the unembedding vanish at alpha = 0.45, where all tokens are equally likely: logits are
    # 400 (1 - alpha / 0.45)^2, so that at 0.4 and 0.5 hardly anything of it is seen. 7 and 8 are a tie.
    for name, digits in (("seven", (SEVEN, SEVEN)), ("eight", (EIGHT, SEVEN))):
        answers(*digits).save(tmp_path / f"{name}.npz")
    steps = dict.fromkeys([(MARK, SEVEN), (MARK, EIGHT), (SEVEN, EOS), (EIGHT, EOS)], 400.0)
    norm = torch.full((16,), -1 / 0.45)
    runs = [
        save_run(tmp_path, "plain", {"lm_head.weight": table(steps)}),
        save_run(tmp_path, "flipped", {"lm_head.weight": -(0.55 / 0.45) * table(steps), "model.norm.weight": norm}),
    ]
    probes = {name: str(tmp_path / f"{name}.npz") for name in ("seven", "eight")}
    coarse, fine = (
        compute_all(Paths(PathsSettings(refine=refine, bootstrap=100), runs, bigram, probes)) for refine in (0, 12)
    )
    grids = [[row["alpha"] for row in fine["paths"] if row["probe"] == name] for name in probes]
    assert grids[0] == grids[1]
    assert set(np.linspace(0, 1, 11)) < set(grids[0])
    assert len(grids[0]) <= 23
    for before, after in zip(coarse["barriers"], fine["barriers"], strict=True):
        assert before["chord"] < 0.1
        assert after["chord"] == pytest.approx(math.log(V) - math.log(2) / 2, rel=1e-4)
        assert after["chord_alpha"] == pytest.approx(0.45, abs=1e-9)
        assert after["chord_low"] <= after["chord"] <= after["chord_high"]


def test_matched_paths_scale_the_longer_delta_down(student, probe_file, runs, tmp_path):
    long = save_run(tmp_path, "long", {name: 4 * value for name, value in noise(student, 2).items()})
    settings = {"points": 3, "refine": 0}
    matched = compute_all(MatchedPaths(MatchedPathsSettings(**settings), [runs[0], long], student, {"t": probe_file}))
    (row,) = matched["matched_barriers"]
    norms = [math.sqrt(sum(v.double().square().sum().item() for v in noise(student, s).values())) for s in (1, 2)]
    assert (row["scale_a"], row["norm"]) == pytest.approx((1, norms[0]), rel=1e-7)
    assert row["scale_b"] == pytest.approx(norms[0] / (4 * norms[1]), rel=1e-7)
    equal = {name: norms[0] / norms[1] * value for name, value in noise(student, 2).items()}
    pair = [runs[0], save_run(tmp_path, "equal", equal)]
    plain = compute_all(Paths(PathsSettings(**settings), pair, student, {"t": probe_file}))
    losses = [[row["nll"] for row in rows] for rows in (matched["matched_paths"], plain["paths"])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    base = Run(BASE, "key-base", None)
    tasks = MatchedPaths(MatchedPathsSettings(), [base, *runs[:2]], student, {"t": probe_file}).tasks()
    assert [[run.name for run in task.payload] for task in tasks] == [["r1", "r2"]]
