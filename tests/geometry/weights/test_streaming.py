"""Full fine-tunes in shards beside their base: what is found equals dense fp64, and what is read is bounded."""

import itertools
import math

import numpy as np
import pytest
import torch
from delta_cases import Q, Reads, all_rows, differences, gaussian, low_rank
from scipy.linalg import subspace_angles
from tiny import save_model

from raygeo.analyses.norms.workload import Norms, NormSettings
from raygeo.analyses.similarity.workload import Similarity, SimilaritySettings
from raygeo.analyses.subspaces.workload import Subspaces, SubspaceSettings
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.difference import difference
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import Dense, open_delta
from raygeo.models.run import Run

NAMES = ["a", "b", "c"]
BLOCK = 300


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        save_model(folder / name, seed=seed + 1)
    save_model(folder / "base")
    assert len(list((folder / "a").glob("model-*.safetensors"))) > 3
    return folder


@pytest.fixture(scope="module")
def dense(models):
    return {name: differences(models / name, models / "base") for name in NAMES}


@pytest.fixture
def runs(models):
    return [Run(name, name, models / name, base=models / "base") for name in NAMES]


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr(linalg, "_BLOCK", BLOCK)
    monkeypatch.setattr(linalg, "_LAPACK_LIMIT", 0)


@pytest.mark.usefixtures("blocks")
def test_similarity_equals_dense_fp64(models, dense, runs):
    rows = all_rows(Similarity(SimilaritySettings(), runs, models / "base"))
    found = {(r["run_a"], r["run_b"]): r for r in rows["similarity"] if r["scope"] == "global"}
    flat = {name: torch.cat([d.double().flatten() for d in dense[name].values()]) for name in NAMES}
    for a, b in itertools.permutations(NAMES, 2):
        cosine = torch.nn.functional.cosine_similarity(flat[a], flat[b], dim=0).item()
        assert found[a, b]["cosine"] == pytest.approx(cosine, abs=1e-14)
        left = sum(
            ((y - (x * y).sum() / x.square().sum() * x).square().sum().item())
            for x, y in ((dense[a][n].double(), dense[b][n].double()) for n in dense[a])
        )
        expected = (left / flat[b].square().sum().item()) ** 0.5
        assert found[a, b]["orthogonal_fraction"] == pytest.approx(expected, rel=1e-12)
    moments = {(r["run_a"], r["run_b"], r["module"] + ".weight"): r["inner"] for r in rows["moments"]}
    for (a, b), n in itertools.product(itertools.product(NAMES, NAMES), dense["a"]):
        x, y = dense[a][n].double(), dense[b][n].double()
        assert moments[a, b, n] == pytest.approx((x * y).sum().item(), abs=1e-12 * (x.norm() * y.norm()).item())


@pytest.mark.usefixtures("blocks")
def test_norms_and_singular_values_equal_dense_fp64(models, dense, runs):
    base = Checkpoint(models / "base")
    rows = all_rows(Norms(NormSettings(), runs[:1], models / "base"))["deltas"]
    found = {row["module"]: row for row in rows if row["scope"] == "module"}
    assert {f"{module}.weight" for module in found} == set(dense["a"])
    for name, delta in dense["a"].items():
        row = found[name.removesuffix(".weight")]
        assert row["norm"] == pytest.approx(delta.double().norm().item(), rel=1e-12)
        assert row["base_norm"] == pytest.approx(base.tensor(name).double().norm().item(), rel=1e-12)
        if delta.dim() == 2:
            exact = torch.linalg.svdvals(delta.double())
            assert row["spectral_norm"] == pytest.approx(exact[0].item(), rel=1e-12)
            assert row["stable_rank"] == pytest.approx(linalg.stable_rank(exact), rel=1e-12)
            # Squares of singular values have rounding errors of 1e-16 of the largest square.
            close = linalg.singular_values(open_delta(models / "a", models / "base")[name]) ** 2
            assert (close - exact**2).abs().max() <= 1e-12 * exact[0] ** 2
    whole = [row for row in rows if row["scope"] == "global"]
    size = sum(delta.double().square().sum().item() for delta in dense["a"].values()) ** 0.5
    assert whole[0]["norm"] == pytest.approx(size, rel=1e-12)


@pytest.mark.usefixtures("blocks")
def test_subspaces_equal_dense_fp64(models, dense, runs):
    rows = all_rows(Subspaces(SubspaceSettings(k=2), runs[:2], models / "base"))["subspaces"]
    for name in [Q.format(0) + ".weight", "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"]:
        a, b = (torch.linalg.svd(dense[run][name].double()) for run in ("a", "b"))
        for side, x, y in (("left", a.U, b.U), ("right", a.Vh.T, b.Vh.T)):
            angles = np.rad2deg(subspace_angles(x[:, :2].numpy(), y[:, :2].numpy()))[::-1]
            mine = [r["angle_degrees"] for r in rows if f"{r['module']}.weight" == name and r["side"] == side]
            np.testing.assert_allclose(mine, angles, atol=1e-6)


@pytest.mark.usefixtures("blocks")
def test_every_value_is_read_once_for_all_pairs_and_in_small_blocks(models, dense, runs, monkeypatch):
    reads = Reads(monkeypatch)
    all_rows(Similarity(SimilaritySettings(), runs, models / "base"))
    sizes = {name: delta.numel() for name, delta in dense["a"].items()}
    assert reads.values == {(run, name): size for run in [*NAMES, "base"] for name, size in sizes.items()}
    assert 32 <= reads.largest <= BLOCK / len(runs)  # or a row, of which the widest has 64
    assert max(sizes.values()) > 10 * reads.largest


@pytest.mark.usefixtures("blocks")
def test_norms_and_singular_values_read_blocks_too(models, dense, runs, monkeypatch):
    reads = Reads(monkeypatch)
    all_rows(Norms(NormSettings(), runs[:1], models / "base"))
    assert reads.largest <= BLOCK
    for name, delta in dense["a"].items():
        assert reads.values["a", name] <= (3 if delta.dim() == 2 else 2) * delta.numel()


@pytest.mark.usefixtures("blocks")
def test_low_rank_and_streamed_deltas_meet_in_one_pass(dense, runs, monkeypatch):
    name = Q.format(1) + ".weight"
    low = [low_rank(32, 32, 3, seed=5), low_rank(32, 32, 2, seed=6)]
    matrices = [low[0].dense(torch.float64), dense["a"][name], low[1].dense(torch.float64), dense["b"][name]]
    flat = torch.stack([matrix.double().flatten() for matrix in matrices])
    scale = flat.norm(dim=1)
    reads = Reads(monkeypatch)
    found = linalg.gram([low[0], runs[0].open()[name], low[1], runs[1].open()[name]])
    assert ((found - flat @ flat.T).abs() <= 1e-14 * torch.outer(scale, scale)).all()
    assert reads.values["a", name] == reads.values["b", name] == 1024


def test_differences_of_streamed_deltas_are_read_in_blocks(dense, runs, monkeypatch):
    monkeypatch.setattr(linalg, "_BLOCK", BLOCK)
    name = "model.embed_tokens.weight"
    exact = dense["b"][name].double() - dense["a"][name].double()
    reads = Reads(monkeypatch)
    move = difference(runs[1].open()[name], runs[0].open()[name])
    assert linalg.norm(move) == pytest.approx(exact.norm().item(), rel=1e-14)
    assert 0 < reads.largest <= BLOCK
    assert torch.equal(move.value, exact)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (11,), (3, 4, 5), ()])
@pytest.mark.parametrize("elements", [1, 9, 1000])
def test_blocks_are_the_whole_in_order(shape, elements):
    entry = Dense(gaussian(60, seed=0)[: math.prod(shape)].reshape(shape))
    for dim in range(max(1, min(2, len(shape)))):
        parts = list(entry.blocks(elements, dim))
        assert all(p.numel() <= max(elements, entry.value.numel() // (shape[dim] if shape else 1)) for p in parts)
        assert torch.equal(torch.cat(parts, dim) if shape else parts[0], entry.value)
