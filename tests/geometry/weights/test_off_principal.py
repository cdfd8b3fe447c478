import itertools
import pickle

import numpy as np
import pytest
import torch
from delta_cases import Q, V, full_run, gaussian, lora_run, low_rank
from pydantic import ValidationError
from safetensors.torch import save_file
from scipy.linalg import subspace_angles
from scipy.stats import hypergeom, norm

from raygeo.analyses.off_principal.workload import OffPrincipal, OffPrincipalSettings, totals
from raygeo.errors import DeltaError
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.masks import MASKS
from raygeo.geometry.weights.principal import Principal, gap, shift_norm, turns
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import LowRank
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

Q0, Q1, V0, NORM = Q.format(0) + ".weight", Q.format(1) + ".weight", V.format(0) + ".weight", "model.norm.weight"
EMBED = "model.embed_tokens.weight"


def run_all(runs, base, **settings):
    workload = pickle.loads(pickle.dumps(OffPrincipal(OffPrincipalSettings(**settings), runs, base)))
    state, found = workload.setup(), {table: [] for table in workload.tables}
    for task in workload.tasks():
        for table, rows in workload.compute(state, task.payload).items():
            to_arrow(table, rows, workload.tables[table])
            found[table] += rows
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small full delta, a large one, and a LoRA delta; all but the last hold more than matrices of blocks."""
    folder = tmp_path_factory.mktemp("deltas")
    shapes = {Q0: (32, 32), Q1: (32, 32), V0: (16, 32), NORM: (32,), EMBED: (48, 32)}
    made = [
        full_run(folder, name, {n: size * gaussian(*s, seed=seed + i) for i, (n, s) in enumerate(shapes.items())})
        for name, size, seed in (("small", 3e-5, 0), ("large", 1e-3, 10))
    ]
    factors = low_rank(32, 32, 4, 20)
    made.append(lora_run(folder, "lora", {Q.format(0): LowRank(2e-5 * factors.b, factors.a, 2.0)}))
    return [Run(BASE, BASE, None), *made]


@pytest.fixture(scope="module")
def rows(runs, base):
    return run_all(runs, base, k=5)


def reference(weight, delta, k, alpha):
    """Everything about one matrix by definition, in numpy."""
    w0, w1 = weight.double().numpy(), weight.double().numpy() + delta.double().numpy()
    (u0, s0, v0), (u1, s1, v1) = np.linalg.svd(w0), np.linalg.svd(w1)
    old, new = weight.bfloat16(), (weight + delta.float()).bfloat16()
    moved = (old != new).numpy()
    count = round(alpha * w0.size)
    energy = np.abs((u0[:, :k] * s0[:k]) @ v0[:k])
    top = energy >= np.sort(energy, axis=None)[-count]
    low = np.abs(w0) <= np.sort(np.abs(w0), axis=None)[count - 1]
    left, right = (np.rad2deg(subspace_angles(a, b)) for a, b in ((u0[:, :k], u1[:, :k]), (v0[:k].T, v1[:k].T)))
    row = {
        "entries": w0.size,
        "changed": moved.sum(),
        "update_sparsity": 1 - moved.mean(),
        "base_norm": np.linalg.norm(w0),
        "shift_norm": np.linalg.norm(s1 - s0),
        "spectral_shift": np.linalg.norm(s1 - s0) / np.linalg.norm(s0),
        "k": k,
        "gap": s0[k - 1] - s1[k],
        "left_mean_degrees": left.mean(),
        "left_max_degrees": left.max(),
        "right_mean_degrees": right.mean(),
        "right_max_degrees": right.max(),
    }
    order = torch.randperm(w0.size, generator=torch.Generator().manual_seed(0))
    elsewhere = delta.flatten()[order].reshape(weight.shape)
    shuffled = (old != (weight + elsewhere.float()).bfloat16()).numpy()
    return row, moved, shuffled, dict(zip(MASKS, (top, low, top & ~low, ~top & ~low), strict=True))


def test_every_module_equals_its_definition(runs, base, rows):
    found = {(r["run"], r["module"]): r for r in rows["off_principal"]}
    overlaps = {(r["run"], r["module"], r["mask"]): r for r in rows["mask_overlaps"]}
    assert {module for _, module in found} == {Q.format(0), Q.format(1), V.format(0)}
    assert len(found) == 7
    for run in runs[1:]:
        for name, entry in run.open().items():
            if name in (NORM, EMBED):
                continue
            module = name.removesuffix(".weight")
            expected, moved, shuffled, masks = reference(Checkpoint(base).tensor(name), entry.dense(), 5, 0.3)
            row = found[run.name, module]
            assert (row["scope"], row["layer"]) == ("module", int(module.split(".")[2]))
            for column, value in expected.items():
                assert row[column] == pytest.approx(value, rel=1e-6, abs=1e-10), (run.name, module, column)
            for mask, inside in masks.items():
                row, law = overlaps[run.name, module, mask], hypergeom(moved.size, inside.sum(), moved.sum())
                both = (inside & moved).sum()
                assert (row["mask_entries"], row["changed"], row["both"]) == (inside.sum(), moved.sum(), both)
                assert row["overlap"] == pytest.approx(both / moved.sum(), abs=1e-15)
                assert row["shuffled_overlap"] == (inside & shuffled).sum() / shuffled.sum()
                assert row["baseline"] == pytest.approx(inside.mean(), abs=1e-12)
                assert row["z"] == pytest.approx((both - law.mean()) / law.std(), abs=1e-9)


def test_small_entries_change_first_and_shuffling_tells_that_it_means_nothing(rows):
    """Entries of a random delta: bf16 sees those beside small weights alone, wherever they are."""
    found = {(r["run"], r["module"], r["mask"]): r for r in rows["mask_overlaps"]}
    low = found["small", Q.format(0), "low-magnitude"]
    assert low["overlap"] > 0.5
    assert low["z"] > 10
    assert low["shuffled_overlap"] == pytest.approx(low["overlap"], abs=0.1)
    assert found["small", Q.format(0), "principal"]["z"] < 0


def test_a_delta_aimed_at_large_entries_stands_out_from_its_shuffle(tmp_path):
    weight = gaussian(64, 64, seed=0)
    save_file({Q0: weight}, tmp_path / "model.safetensors")
    principal = Principal.of(weight, 8).reconstruction
    aimed = (0.02 * gaussian(64, 64, seed=1) * (principal.abs() > 0.5)).float()
    found = run_all([full_run(tmp_path, "run", {Q0: aimed})], tmp_path, k=8, alpha=0.25)["mask_overlaps"]
    row = next(r for r in found if r["mask"] == "principal")
    assert row["overlap"] > 0.6
    assert row["shuffled_overlap"] == pytest.approx(0.25, abs=0.06)


def test_pairs_are_jaccard_indices(runs, base, rows):
    held = {run.name: run.open() for run in runs[1:]}
    assert len(rows["changed_pairs"]) == 5
    for row in rows["changed_pairs"]:
        name = row["module"] + ".weight"
        weight = Checkpoint(base).tensor(name)
        a, b = (reference(weight, held[row[side]][name].dense(), 5, 0.3)[1] for side in ("run_a", "run_b"))
        assert row["jaccard"] == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-15)
        chance = a.sum() * b.sum() / a.size
        assert row["null_jaccard"] == pytest.approx(chance / (a.sum() + b.sum() - chance), abs=1e-12)


def test_entries_within_the_tolerance_are_counted_beside_those_of_a_normal_delta(runs, base):
    rows = [r for r in run_all(runs, base, tolerance=2e-5)["off_principal"] if r["run"] != "lora"]
    for row in rows:
        (run,) = [run for run in runs if run.name == row["run"]]
        delta = run.open()[f"{row['module']}.weight"].dense(torch.float64).numpy()
        assert row["unchanged"] == (np.abs(delta) <= 2e-5).sum()
        assert row["absolute_sparsity"] == row["unchanged"] / delta.size
        law = norm(scale=np.sqrt((delta**2).mean()))
        assert row["gaussian_sparsity"] == pytest.approx(law.cdf(2e-5) - law.cdf(-2e-5), rel=1e-9)
        assert row["absolute_sparsity"] == pytest.approx(row["gaussian_sparsity"], abs=0.06), "it is normal"
    assert {row["run"]: row["unchanged"] > 0 for row in rows} == {"small": True, "large": True}


def test_a_sparse_delta_is_sparser_than_a_normal_one_and_zero_is_all_still(tmp_path):
    save_file({Q0: gaussian(32, 32, seed=0), Q1: gaussian(32, 32, seed=1)}, tmp_path / "model.safetensors")
    change = torch.zeros(32, 32)
    change[0, :8] = 1e-3
    found = run_all([full_run(tmp_path, "run", {Q0: change, Q1: torch.zeros(32, 32)})], tmp_path)["off_principal"]
    few, none = found
    assert few["absolute_sparsity"] == 1 - 8 / 1024
    assert few["gaussian_sparsity"] < 0.1
    assert none["absolute_sparsity"] == none["gaussian_sparsity"] == 1


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_spectra_and_subspaces_stay_within_weyl_and_wedin(tmp_path, shape, seed):
    u, v = (torch.linalg.qr(gaussian(n, 24, seed=seed + n, dtype=torch.float64)).Q for n in shape)
    spectrum = torch.cat([torch.linspace(9, 6, 4), torch.linspace(2, 0.1, 20)]).double()
    name = Q0
    weight = ((u * spectrum) @ v.T).float()
    save_file({name: weight}, tmp_path / "model.safetensors")
    run = full_run(tmp_path, "run", {name: 0.05 * gaussian(*shape, seed=seed + 50)})
    (row,) = run_all([run], tmp_path, k=4)["off_principal"]
    delta = np.linalg.norm(run.open()[name].dense(torch.float64).numpy(), 2)
    assert row["gap"] > 3
    for side in ("left", "right"):
        assert 0 < np.sin(np.deg2rad(row[f"{side}_max_degrees"])) <= delta / row["gap"]
    before = torch.linalg.svdvals(weight.double())
    after = linalg.singular_values(type(run.open()[name])(weight.double() + run.open()[name].dense(torch.float64)))
    assert (after - before).abs().max() <= delta + 1e-12
    assert row["shift_norm"] == pytest.approx((after - before).norm().item(), rel=1e-12)


def test_a_turn_in_the_principal_plane_is_found_at_its_angle(tmp_path):
    """Leading directions turned by 0.01 degrees: far below what an arc cosine in fp32 could tell."""
    d, angle = 12, np.deg2rad(0.01)
    weight = torch.diag(torch.tensor([8.0, 4.0] + [1.0] * (d - 2), dtype=torch.float64))
    turn = torch.eye(d, dtype=torch.float64)
    turn[[1, 1, 5, 5], [1, 5, 1, 5]] = torch.tensor([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)])
    before, after = Principal.of(weight, 2), Principal.of(turn @ weight, 2)
    overlap = before.left.T @ after.left
    assert torch.linalg.svdvals(after.left - before.left @ overlap)[0] == pytest.approx(np.sin(angle), rel=1e-8)
    np.testing.assert_allclose(turns(before, after)["left"], [0, 0.01], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(turns(before, after)["right"], 0, atol=1e-12)
    assert gap(before, after) == pytest.approx(3)
    assert shift_norm(before, Principal.of(2 * weight, 2)) == pytest.approx(before.values.norm().item())
    torch.testing.assert_close(after.values, before.values, rtol=1e-12, atol=0)
    save_file({Q0: weight.float()}, tmp_path / "model.safetensors")
    run = full_run(tmp_path, "run", {Q0: turn @ weight - weight})
    (row,) = run_all([run], tmp_path, k=2)["off_principal"]
    assert row["left_max_degrees"] == pytest.approx(0.01, rel=1e-4)
    assert row["left_mean_degrees"] == pytest.approx(0.005, rel=1e-4)
    assert row["spectral_shift"] < 1e-7


def test_a_matrix_beyond_lapack_agrees_with_it(tmp_path, monkeypatch):
    save_file({Q0: gaussian(30, 20, seed=0)}, tmp_path / "model.safetensors")
    run = full_run(tmp_path, "run", {Q0: 1e-4 * gaussian(30, 20, seed=1)})
    exact = run_all([run], tmp_path, k=3)
    monkeypatch.setattr(linalg, "_LAPACK_LIMIT", 4)
    (row,), (expected,) = run_all([run], tmp_path, k=3)["off_principal"], exact["off_principal"]
    for column, value in expected.items():
        if isinstance(value, float):
            assert row[column] == pytest.approx(value, rel=1e-7), column


def test_bf16_bases_and_runs_that_changed_nothing(tmp_path):
    save_file({Q0: gaussian(32, 32, seed=0).bfloat16()}, tmp_path / "model.safetensors")
    runs = [full_run(tmp_path, name, {Q0: 1e-12 * gaussian(32, 32, seed=1)}) for name in "ab"]
    found = run_all(runs, tmp_path)
    for row in found["off_principal"]:
        assert (row["changed"], row["update_sparsity"]) == (0, 1)
        assert 0 < row["spectral_shift"] < 1e-11
    for row in found["mask_overlaps"]:
        assert row["overlap"] is row["baseline"] is row["z"] is None
    (pair,) = found["changed_pairs"]
    assert pair["jaccard"] is pair["null_jaccard"] is None


def test_totals_pool_counts_and_take_medians_of_angles(rows):
    whole = totals(rows)
    for table, content in whole.items():
        to_arrow(table, content, OffPrincipal.tables[table])
    modules = [r for r in rows["off_principal"] if r["run"] == "small"]
    layer = [r for r in modules if r["layer"] == 0]
    for scope, number, parts in (("global", None, modules), ("layer", 0, layer)):
        (row,) = [r for r in whole["off_principal"] if (r["run"], r["scope"], r["layer"]) == ("small", scope, number)]
        entries = sum(r["entries"] for r in parts)
        assert row["update_sparsity"] == pytest.approx(1 - sum(r["changed"] for r in parts) / entries)
        shift = np.sqrt(sum((r["spectral_shift"] * r["base_norm"]) ** 2 for r in parts))
        assert row["spectral_shift"] == pytest.approx(shift / np.sqrt(sum(r["base_norm"] ** 2 for r in parts)))
        assert row["left_max_degrees"] == np.median([r["left_max_degrees"] for r in parts])
    overlaps = [r for r in rows["mask_overlaps"] if (r["run"], r["mask"]) == ("small", "principal")]
    (row,) = [
        r for r in whole["mask_overlaps"] if (r["run"], r["mask"], r["scope"]) == ("small", "principal", "global")
    ]
    changed = sum(r["changed"] for r in overlaps)
    assert row["baseline"] == pytest.approx(sum(r["changed"] * r["baseline"] for r in overlaps) / changed)
    spread = sum(hypergeom(r["entries"], r["mask_entries"], r["changed"]).var() for r in overlaps)
    excess = sum(r["both"] for r in overlaps) - sum(r["expected"] for r in overlaps)
    assert row["z"] == pytest.approx(excess / spread**0.5, rel=1e-9)
    pairs = [r for r in rows["changed_pairs"] if (r["run_a"], r["run_b"]) == ("small", "large")]
    (row,) = [r for r in whole["changed_pairs"] if (r["run_a"], r["run_b"], r["scope"]) == ("small", "large", "global")]
    assert row["jaccard"] == pytest.approx(sum(r["both"] for r in pairs) / sum(r["either"] for r in pairs))
    for table, content in whole.items():
        scopes = [r["scope"] for r in content]
        assert list(dict.fromkeys(scopes)) == ["layer", "module type", "global"], table
        assert scopes == sorted(scopes, key=["layer", "module type", "global"].index), table
    assert not any(totals({table: [] for table in rows}).values())


def test_entries_moved_at_random_have_no_overlap_beyond_chance(tmp_path):
    save_file({Q0: gaussian(64, 64, seed=0)}, tmp_path / "model.safetensors")
    weight = gaussian(64, 64, seed=0)
    scores = []
    for seed in range(40):
        hit = gaussian(64, 64, seed=seed + 1) > 1.5
        run = full_run(tmp_path, f"r{seed}", {Q0: hit * weight * 0.5})
        scores += [(r["mask"], r["z"]) for r in run_all([run], tmp_path)["mask_overlaps"]]
    for mask in MASKS:
        z = np.array([score for name, score in scores if name == mask])
        assert abs(z.mean()) < 4 / 40**0.5
        assert 0.6 < z.std() < 1.4


def test_modules_are_chosen_by_pattern(runs, base):
    assert {r["module"] for r in run_all(runs, base, modules=["*.1.*", "*embed*"])["off_principal"]} == {
        Q.format(1),
        EMBED.removesuffix(".weight"),
    }
    (row,) = run_all(runs[:2], base, modules=["*embed*"])["off_principal"]
    assert row["layer"] is None
    with pytest.raises(
        DeltaError, match=r"modules \['\*.mlp.\*'\] names none of the matrices that runs changed, model"
    ):
        OffPrincipal(OffPrincipalSettings(modules=("*.mlp.*",)), runs, base).tasks()


def test_eta_cannot_blur_two_neighbours():
    with pytest.raises(ValidationError):
        OffPrincipalSettings(eta=2**-8)


def test_one_task_a_matrix_whose_key_holds_all_that_rows_depend_on(runs, base):
    def keys(runs=runs, **settings):
        return {t.payload: t.key for t in OffPrincipal(OffPrincipalSettings(**settings), runs, base).tasks()}

    assert set(keys()) == {Q0, Q1, V0}
    variants = [keys(), keys(k=2), keys(alpha=0.1), keys(seed=1), keys(eta=0.0), keys(runs[:-1])]
    for one, other in itertools.combinations(variants, 2):
        assert one[Q0] != other[Q0]
    assert keys()[Q1] == keys(runs[:-1])[Q1]
    costs = {t.payload: t.cost for t in OffPrincipal(OffPrincipalSettings(), runs, base).tasks()}
    assert costs[Q0] > costs[Q1] > costs[V0]
