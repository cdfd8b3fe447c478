"""What is compared of many runs, and that less of it gives the same numbers."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from curvature_cases import UNEQUAL
from delta_cases import Q, V, all_rows, low_rank, save_lora
from tiny import tiny_qwen
from view_cases import view_of

from raygeo.analyses.cosine_baselines.workload import CosineBaselines, CosineBaselineSettings
from raygeo.analyses.pairs import FEW, choose_pairs, left_out, paired, pairs_key
from raygeo.analyses.similarity.workload import Similarity, SimilaritySettings
from raygeo.analyses.subspaces.workload import Subspaces, SubspaceSettings
from raygeo.geometry.curvature.operators import Hessian
from raygeo.geometry.curvature.span import expand, span
from raygeo.models.delta import open_delta, save_full_delta
from raygeo.models.run import Run
from raygeo.records import Condition
from raygeo.tables import BASE, to_arrow


def sweep(losses: int, rates: int, seeds: int) -> dict[str, Condition]:
    """Conditions of every loss at every rate with every seed, by name."""
    return {
        f"l{loss}-r{rate}-s{seed}": Condition(f"l{loss}", f"r{rate}", seed, None)
        for loss in range(losses)
        for rate in range(rates)
        for seed in range(seeds)
    }


def test_every_two_of_few_runs_are_compared():
    conditions = sweep(3, 2, 2)
    assert len(conditions) == FEW
    assert choose_pairs([BASE, *conditions], "l0-r0-s0", conditions) is None


def test_of_many_runs_those_pairs_are_compared_that_answer_a_question():
    conditions = sweep(3, 2, 3)
    names, reference = [BASE, *conditions], "l1-r0-s1"
    chosen = choose_pairs(names, reference, conditions)
    for a, b in combinations(names, 2):
        hub = BASE in (a, b) or reference in (a, b)
        seeds = not hub and conditions[a].configuration == conditions[b].configuration
        heads = a.endswith("s0") and b.endswith("s0")
        assert (frozenset((a, b)) in chosen) == (hub or seeds or heads), (a, b)
    assert len(paired(names, chosen, str)) == len(chosen) == 18 + 17 + 6 * 3 - 2 + 15


@pytest.mark.parametrize(("losses", "examples"), [(6, 6), (40, 24)])
def test_beyond_many_configurations_losses_have_one_example_each(losses, examples):
    conditions = sweep(losses, 8, 1)
    chosen = choose_pairs([BASE, *conditions], "l0-r0-s0", conditions)
    away = [pair for pair in chosen if not pair & {BASE, "l0-r0-s0"}]
    assert len(away) == (examples - 1) * (examples - 2) // 2
    assert all(name.endswith("r0-s0") for pair in away for name in pair)


def test_pairs_grow_with_the_runs_and_not_with_their_square():
    sizes = [len(choose_pairs([BASE, *of], "l0-r0-s0", of)) for of in (sweep(5, 1, 5), sweep(5, 8, 5))]
    assert sizes[1] < 10 * sizes[0]


def test_keys_hold_pairs_only_where_some_are_left_out():
    pairs = frozenset({frozenset("ab"), frozenset("cb")})
    assert pairs_key(None, "abc") == []
    assert pairs_key(pairs, "cba") == [[["a", "b"], ["b", "c"]]]
    assert pairs_key(pairs, "ab") == [[["a", "b"]]]


def test_the_page_says_what_was_left_out_and_how_to_get_it():
    names = [f"sft-{i}" for i in range(FEW + 1)]
    rows = [{"run_a": BASE, "run_b": name} for name in names] + [{"run_a": names[0], "run_b": names[1]}]
    (said,) = left_out("paths", "barriers")(view_of(barriers=rows))
    assert "14 of 91 pairs" in said
    assert "`geometry.paths.pairs: all`" in said
    assert "one run of each configuration with each other" in said
    assert left_out("paths", "barriers")(view_of(barriers=rows[:-1])) == []
    assert left_out("paths", "barriers")(view_of(barriers=rows[-1:])) == []


@pytest.mark.parametrize(("losses", "each"), [(2, "each loss with"), (25, "each loss (of at most 24) with")])
def test_the_page_says_what_stands_for_too_many_configurations(losses, each):
    training = {"seed": 0, "init_seed": 0, "lora": None}
    runs = [
        {"run": f"l{loss}-{lr}", "key": f"l{loss}-{lr}", "status": "finished", "loss": f"l{loss}"}
        | {"params": json.dumps({"loss": {"type": f"l{loss}"}, "training": training | {"lr": lr}})}
        for loss in range(losses)
        for lr in range(13)
    ]
    names = [run["run"] for run in runs]
    rows = [{"run_a": BASE, "run_b": name} for name in names] + [{"run_a": names[0], "run_b": names[1]}]
    (said,) = left_out("paths", "barriers")(view_of(runs=runs, barriers=rows))
    assert f"one run of {each} each other" in said


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The base and 13 runs with adapters on two modules of two layers."""
    folder = tmp_path_factory.mktemp("study")
    tiny_qwen().save_pretrained(folder / "base")
    shapes = {name: tuple(p.shape) for name, p in tiny_qwen().named_parameters()}
    modules = [module.format(layer) for layer in (0, 1) for module in (Q, V)]
    runs = []
    for i in range(13):
        entries = {m: low_rank(*shapes[f"{m}.weight"], 2, seed=10 * i + j) for j, m in enumerate(modules)}
        runs.append(Run(f"r{i}", f"r{i}", save_lora(folder / f"r{i}", entries)))
    return folder / "base", runs


CHOSEN = frozenset({frozenset(("r0", "r5")), frozenset(("r2", "r3"))})


def test_similarities_of_chosen_pairs_are_those_among_all(study):
    base, runs = study
    every, some = (all_rows(Similarity(SimilaritySettings(), runs, base, of)) for of in (None, CHOSEN))
    assert all_rows(Similarity(SimilaritySettings(pairs="all"), runs, base, CHOSEN)) == every
    place = ("run_a", "run_b", "scope", "name")
    known = {tuple(row[c] for c in place): row for row in every["similarity"]}
    for row in some["similarity"]:
        expected = known.pop(tuple(row[c] for c in place))
        assert [row[c] for c in ("cosine", "orthogonal_fraction", "null_sd")] == pytest.approx(
            [expected[c] for c in ("cosine", "orthogonal_fraction", "null_sd")], rel=1e-12
        )
    assert {scope for *_, scope, _ in known} == {"module", "layer"}
    assert not any(frozenset((a, b)) in CHOSEN for a, b, *_ in known)
    assert len(some["moments"]) == len(every["moments"]) / 2, "modules of a layer are added up"


def test_angles_of_chosen_pairs_are_those_among_all(study):
    base, runs = study
    every, some = (all_rows(Subspaces(SubspaceSettings(k=2), runs[:6], base, of)) for of in (None, CHOSEN))
    kept = [row for row in every["subspaces"] if frozenset((row["run_a"], row["run_b"])) in CHOSEN]
    assert some["subspaces"] == kept != []


def test_more_labelings_than_a_column_holds_are_left_unsaid():
    conditions = sweep(6, 1, 8)
    names = list(conditions)
    cosines = np.where([[conditions[a].loss == conditions[b].loss for b in names] for a in names], 0.5, 0.1)
    np.fill_diagonal(cosines, 1.0)
    rows = [
        {"run_a": a, "run_b": b, "module": "m", "layer": 0, "inner": cosines[i, j], "residual": 1.0, "variance": 1.0}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
    moments = to_arrow("moments", rows, Similarity.tables["moments"])
    runs = [Run(name, name, name) for name in names]
    workload = CosineBaselines(CosineBaselineSettings(permutations=99), runs, moments, conditions, names[0])
    test, *_ = all_rows(workload)["permutation_tests"]
    assert (test["labelings"], test["draws"], test["p"]) == (None, 99, 0.01)


def test_an_expansion_is_the_same_whether_all_vectors_are_held_or_one(tmp_path):
    model = tiny_qwen(29)
    generator = torch.Generator().manual_seed(0)
    names = [name for name, _ in model.named_parameters() if "q_proj" in name]
    for i in range(3):
        change = {n: torch.randn(model.get_parameter(n).shape, generator=generator) for n in names}
        save_full_delta(tmp_path / str(i), change)
    deltas = [open_delta(tmp_path / str(i)) for i in range(3)]
    basis, operator = span(deltas), Hessian(model, UNEQUAL.batches(0, 3), names)
    held = expand(operator, operator.matmat, basis, np.zeros(3), 1)
    for most, together in ((1, 1), (2 * operator.n, 1), (2 * operator.n, 2)):
        other = expand(operator, operator.matmat, span(deltas, most), np.zeros(3), together)
        np.testing.assert_allclose(other.hessian, held.hessian, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(other.gradient, held.gradient, rtol=1e-6, atol=1e-9)
    flat = torch.stack([operator.flatten({n: e.dense() for n, e in d.items()}) for d in basis.deltas], 1)
    vectors = flat.double() @ torch.from_numpy(basis.mix)
    expected = vectors.T @ operator.matmat(vectors.float()).double()
    np.testing.assert_allclose(held.hessian, (expected + expected.T) / 2, rtol=1e-4, atol=1e-6)
