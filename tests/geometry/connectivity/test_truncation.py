"""Deltas cut to few directions, and what is left of a run's gain."""

import numpy as np
import pytest
import torch
from connectivity_cases import compute_all, exam, noise, save_probe, save_run
from delta_cases import gaussian, lora_run, low_rank
from transformers import Qwen3ForCausalLM
from view_cases import row_of, sheet_of, view_of

from raygeo.analyses.rank_truncation.report import least, limits, truncation
from raygeo.analyses.rank_truncation.workload import RankTruncation, RankTruncationSettings
from raygeo.data.probes import Probe, nll
from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.retention import least_place, retention
from raygeo.geometry.connectivity.truncation import Truncation, full_rank, leading_directions, random_directions
from raygeo.models.delta import Dense, LowRank
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

ENTRIES = {
    "factors": low_rank(40, 30, 6, seed=1),
    "tall": Dense(gaussian(50, 20, seed=2)),
    "wide": Dense(gaussian(20, 50, seed=3)),
    "by its Gram matrix": Dense(gaussian(600, 520, seed=4)),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_leading_directions_are_the_best_approximation(name):
    entry = ENTRIES[name]
    dense = entry.dense(torch.float64)
    found = leading_directions(entry, 5)
    u, s, vh = np.linalg.svd(dense.numpy(), full_matrices=False)
    np.testing.assert_allclose(found.energies, s[:5] ** 2, rtol=1e-6)
    for k in (1, 3, 5):
        cut = found.first(k)
        assert type(cut) is type(entry)
        np.testing.assert_allclose(cut.dense(torch.float64), (u[:, :k] * s[:k]) @ vh[:k], atol=2e-5 * s[0])
        if isinstance(cut, Dense):
            torch.testing.assert_close(torch.cat(list(cut.blocks(40, 0))), cut.value)
            torch.testing.assert_close(torch.cat(list(cut.blocks(60, 1)), 1), cut.value)


@pytest.mark.parametrize("name", ["factors", "tall", "wide"])
def test_random_directions_project_and_hold_their_share_of_the_energy(name):
    entry, rank = ENTRIES[name], full_rank(ENTRIES[name])
    dense = entry.dense(torch.float64)
    total = float(dense.square().sum())
    draws = [random_directions(entry, rank, torch.Generator().manual_seed(seed)) for seed in range(200)]
    held = np.array([float(draw.energies[:3].sum()) for draw in draws]) / total
    assert held.mean() == pytest.approx(3 / rank, abs=4 * held.std() / len(draws) ** 0.5)
    torch.testing.assert_close(draws[0].first(rank).dense(torch.float64), dense, rtol=1e-4, atol=1e-4)
    part = draws[0].first(3).dense(torch.float64)
    # A projection: what is left over is orthogonal to it, and it has no more than three singular values.
    assert float((part * (dense - part)).sum()) == pytest.approx(0, abs=1e-4 * total)
    assert float(part.square().sum()) == pytest.approx(float(draws[0].energies[:3].sum()), rel=1e-5)
    assert np.linalg.matrix_rank(part.numpy(), tol=1e-3) == 3


def test_a_whole_delta_is_cut_matrix_by_matrix_and_its_vectors_stay():
    delta = {**ENTRIES, "bias": Dense(gaussian(9, seed=5))}
    del delta["by its Gram matrix"]
    cut = Truncation.leading(delta, 4)
    assert cut.full_rank == 20
    dense = {name: entry.dense(torch.float64).numpy() for name, entry in delta.items()}
    values = {name: np.linalg.svd(x, compute_uv=False) for name, x in dense.items() if x.ndim == 2}
    total = sum((x**2).sum() for x in dense.values())
    kept = {name: (values[name][:2] ** 2).sum() if x.ndim == 2 else (x**2).sum() for name, x in dense.items()}
    assert cut.energy(2) == pytest.approx(sum(kept.values()) / total, rel=1e-6)
    merged = {name: entry for coefficient, part in cut.at(2) for name, entry in part.items() if coefficient == 1}
    assert set(merged) == set(delta)
    assert torch.equal(merged["bias"].dense(), delta["bias"].dense())
    scaled = {name: (coefficient, entry) for coefficient, part in cut.scaled(2) for name, entry in part.items()}
    for name, (coefficient, entry) in scaled.items():
        assert float((coefficient * entry.dense(torch.float64)).square().sum()) == pytest.approx(kept[name], rel=1e-5)
    one, again, other = (Truncation.random(delta, 4, seed) for seed in (0, 0, 1))
    assert one.energy(3) == again.energy(3) != other.energy(3)
    assert one.energy(3) < cut.energy(3)


def test_shares_of_a_gain_are_those_of_its_token_weighted_mean():
    counts = np.array([1.0, 9.0, 5.0, 2.0] * 6)
    start = 3 * counts
    end = start - counts * np.random.default_rng(0).uniform(0.8, 1.2, 24)
    points = [start - share * (start - end) for share in (0.2, 0.995, 0.9, 0.999)]
    found = retention(start, points, end, counts, keep=0.99, resamples=200, seed=0)
    assert found.gain == pytest.approx((start - end).sum() / counts.sum())
    np.testing.assert_allclose(found.shares, [0.2, 0.995, 0.9, 0.999])
    np.testing.assert_allclose(found.intervals, np.array([found.shares] * 2).T)
    assert (found.least, found.least_interval) == (3, (3, 3)), "0.9 comes after 0.995"
    lost = retention(end, points[::-1], start, counts, keep=0.99, resamples=200, seed=0)
    assert lost.gain == -found.gain


def test_a_least_rank_is_as_sure_as_the_texts_are_alike():
    rng, counts = np.random.default_rng(1), np.full(40, 10.0)
    start, end = counts * 2, counts * 1
    near = end + 10 * rng.normal(0.01, 0.05, 40)  # keeps 99 % on average
    found = retention(start, [near, end], end, counts, keep=0.99, resamples=500, seed=0)
    assert found.least_interval == (0, 1)
    equal = retention(start, [near], start + rng.normal(0, 1, 40), counts, keep=0.99, resamples=500, seed=0)
    assert (equal.shares, equal.intervals, equal.least, equal.least_interval) == ([], [], None, None)
    assert least_place(np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), 0.5).tolist() == [0, 1, 2]
    none = retention(start, [], end, counts, keep=0.99, resamples=100, seed=0)
    assert (none.shares, none.least, none.least_interval) == ([], 0, (0, 0)), "the place after all points"


QUICK = {"bootstrap": 100, "max_new_tokens": 3}


def test_points_are_the_run_with_its_matrices_cut(student, probe_file, tmp_path):
    tensors = noise(student, 1, 0.3)
    run = save_run(tmp_path, "r", tensors)
    settings = RankTruncationSettings(ranks=(2, 99), accuracy_problems=2, **QUICK)
    problems = exam(student, [("a ?", "7"), ("b ?", "8")])
    found = compute_all(RankTruncation(settings, [Run(BASE, BASE, None), run], student, probe_file, problems))
    rows = {row["kind"]: row for row in found["rank_truncation"]}
    assert list(rows) == ["base", "truncated", "random", "scaled", "whole"]
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    base = {name: value.clone() for name, value in model.named_parameters()}
    batches = Probe.load(probe_file).batches(0, 16)

    def cut(matrix):
        if matrix.ndim < 2:
            return matrix
        u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
        return torch.from_numpy((u[:, :2] * s[:2]) @ vh[:2]).float()

    def loss(change):
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(base[name] + change(tensors[name]))
        return nll(model, batches)

    expected = {
        "base": loss(torch.zeros_like),
        "truncated": loss(cut),
        "scaled": loss(lambda x: x * cut(x).norm() / x.norm()),
        "whole": loss(lambda x: x),
    }
    for kind, value in expected.items():
        assert rows[kind]["nll"] == pytest.approx(value, rel=1e-5), kind
        assert ("accuracy" in rows[kind]) == (kind != "scaled")
    assert "accuracy" not in rows["random"]
    assert rows["truncated"]["energy"] == rows["scaled"]["energy"] > rows["random"]["energy"]
    [least] = found["least_ranks"]
    assert least["gain"] == pytest.approx(expected["base"] - expected["whole"], abs=1e-5)
    assert least["full_rank"] == rows["whole"]["rank"] == 16
    share = (expected["base"] - expected["truncated"]) / (expected["base"] - expected["whole"])
    assert rows["truncated"]["kept"] == pytest.approx(share, abs=1e-3)


def test_of_adapters_no_more_than_their_rank_is_cut(student, probe_file, tmp_path):
    run = lora_run(tmp_path, "lora", {"model.layers.0.self_attn.q_proj": LowRank(*_factors(), 1.0)})
    settings = RankTruncationSettings(ranks=(1, 2, 3, 8), accuracy_problems=0, **QUICK)
    workload = RankTruncation(settings, [run], student, probe_file, None)
    rows = compute_all(workload)["rank_truncation"]
    assert [(row["kind"], row["rank"]) for row in rows if row["kind"] not in ("random", "scaled")] == [
        ("base", 0), ("truncated", 1), ("truncated", 2), ("whole", 3)
    ]  # fmt: skip
    keys = [RankTruncation(s, [run], student, probe_file, None).tasks()[0].key for s in _variants(settings)]
    assert len(set(keys)) == len(keys)
    only_a_norm = save_run(tmp_path, "norm", {"model.norm.weight": gaussian(16, seed=1)})
    with pytest.raises(DeltaError, match="changes no matrix"):
        compute_all(RankTruncation(settings, [only_a_norm], student, probe_file, None))


def test_with_no_rank_left_to_cut_the_least_is_the_whole_and_one_text_has_no_interval(student, tmp_path):
    run = lora_run(tmp_path, "lora", {"model.layers.0.self_attn.q_proj": low_rank(16, 16, 1, seed=1, scale=3.0)})
    # Each text many times, so that the gain, whatever its sign, is told from 0.
    [text] = Probe.load(save_probe(tmp_path / "one.npz", texts=1)).sequences
    Probe("texts", [text] * 4).save(tmp_path / "same.npz")
    settings = RankTruncationSettings(ranks=(16, 32), accuracy_problems=0, **QUICK)
    found = compute_all(RankTruncation(settings, [run], student, tmp_path / "same.npz", None))
    assert [row["kind"] for row in found["rank_truncation"]] == ["base", "whole"]
    [row] = found["least_ranks"]
    assert (row["least_rank"], row["least_low"], row["least_high"], row["full_rank"]) == (1, 1, 1, 1)
    alone = compute_all(RankTruncation(settings, [run], student, tmp_path / "one.npz", None))
    assert {row["nll_low"] for row in alone["rank_truncation"]} == {None}
    tables = RankTruncation.tables
    seen = view_of(**{name: [*to_arrow(name, rows, tables[name]).to_pylist()] for name, rows in found.items()})
    assert row_of(sheet_of(least, seen), "lora")["least rank"][0] == "1 of 1"
    assert truncation.draw(seen) is not None
    assert limits(seen)


def _factors():
    return gaussian(16, 3, seed=1), gaussian(3, 16, seed=2)


def _variants(settings):
    changes = ({}, {"ranks": (1,)}, {"keep": 0.9}, {"subspace_seed": 1}, {"seed": 1})
    return [settings.model_copy(update=change) for change in changes]
