import itertools
import json
import math

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from raygeo.analyses.cka import representations
from raygeo.analyses.cka.workload import CKA, CKASettings
from raygeo.data.probes import Probe
from raygeo.errors import DataError, DeltaError
from raygeo.geometry.representation import cka
from raygeo.geometry.representation.cka import Alignment, hsic1, minibatches
from raygeo.geometry.representation.features import PLAIN, TREATMENTS
from raygeo.geometry.representation.kernels import gram
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run
from raygeo.tables import to_arrow


def gaussian(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def align(k: torch.Tensor, m: torch.Tensor, batches: list[torch.Tensor]) -> Alignment:
    """One layer alone."""
    [found] = cka.align(k[None], m[None], batches)
    return found


def whole(n: int) -> list[torch.Tensor]:
    return [torch.arange(n)]


def hsic1_by_tuples(k: torch.Tensor, m: torch.Tensor) -> float:
    """U-statistic over all ordered tuples of distinct indices: E[k_ij m_ij] + E[k_ij m_qr] - 2 E[k_ij m_iq]."""
    n = len(k)
    k, m = k.tolist(), m.tolist()
    pairs = list(itertools.permutations(range(n), 2))
    same = sum(k[i][j] * m[i][j] for i, j in pairs) / len(pairs)
    triples = list(itertools.permutations(range(n), 3))
    shared = sum(k[i][j] * m[i][q] for i, j, q in triples) / len(triples)
    quadruples = list(itertools.permutations(range(n), 4))
    apart = sum(k[i][j] * m[q][r] for i, j, q, r in quadruples) / len(quadruples)
    return same + apart - 2 * shared


def test_cka_of_features_is_that_of_their_kernels():
    x, y = gaussian(30, 5, 15), gaussian(30, 7, 15)
    batches = minibatches([1] * 30, 6, 0)
    assert cka.cka(x, y, batches) == align(gram(x), gram(y), batches)
    assert cka.cka(x.numpy(), y.numpy()) == align(gram(x), gram(y), whole(30))
    assert cka.cka(x, y).low is None


@pytest.mark.parametrize(("first", "second"), [((5, 3), (6, 3)), ((2, 5, 3), (2, 5, 3)), ((5,), (5,))])
def test_features_of_other_texts_are_refused(first, second):
    with pytest.raises(ValueError, match="same n texts"):
        cka.cka(torch.ones(first), torch.ones(second))
    with pytest.raises(ValueError, match="at least 4"):
        cka.cka(torch.ones(3, 2), torch.ones(3, 2))


@pytest.mark.parametrize("n", [4, 5, 9])
def test_hsic1_equals_the_u_statistic_over_all_quadruples(n):
    k, m = (x @ x.T for x in (gaussian(n, 3, 0), gaussian(n, 2, 1) + 1))
    assert float(hsic1(k, m)) == pytest.approx(hsic1_by_tuples(k, m), rel=1e-11)


def test_hsic1_ignores_centring_and_the_diagonal():
    x, y = gaussian(12, 4, 2) + 7, gaussian(12, 5, 3) - 3
    raw = hsic1(x @ x.T, y @ y.T)
    torch.testing.assert_close(hsic1(gram(x), gram(y)), raw, rtol=1e-9, atol=0)
    torch.testing.assert_close(hsic1(x @ x.T + 5 * torch.eye(12, dtype=torch.float64), y @ y.T), raw)


def test_hsic1_refuses_fewer_than_four_examples():
    with pytest.raises(ValueError, match="at least 4"):
        hsic1(torch.eye(3), torch.eye(3))


def test_a_model_is_aligned_with_itself():
    k = gram(gaussian(40, 6, 4))
    found = align(k, k, minibatches([1] * 40, 8, 0))
    assert found.cka == pytest.approx(1, abs=1e-12)
    assert found.biased == pytest.approx(1, abs=1e-12)
    assert found.low == pytest.approx(1, abs=1e-9)
    assert found.high == 1


def test_invariant_to_rotation_scaling_and_shift():
    x, y = gaussian(48, 6, 5), gaussian(48, 6, 5) + 0.5 * gaussian(48, 6, 6)
    rotation = torch.linalg.qr(gaussian(6, 6, 7)).Q
    batches = minibatches([1] * 48, 12, 0)
    plain, moved = align(gram(x), gram(y), batches), align(gram(x), gram(-3 * y @ rotation + 11), batches)
    for field in ("cka", "biased", "low", "high"):
        assert getattr(moved, field) == pytest.approx(getattr(plain, field), abs=1e-9)
    stretched = align(gram(x), gram(y * torch.tensor([30.0, 1, 1, 1, 1, 1])), batches)
    assert abs(stretched.cka - plain.cka) > 0.05, "linear CKA is not invariant to anisotropic scaling"


def test_biased_value_is_the_feature_space_formula():
    x, y = gaussian(30, 5, 8), gaussian(30, 7, 9)
    xc, yc = (z - z.mean(0) for z in (x, y))
    expected = (xc.T @ yc).norm() ** 2 / ((xc.T @ xc).norm() * (yc.T @ yc).norm())
    assert align(gram(x), gram(y), whole(30)).biased == pytest.approx(float(expected), rel=1e-12)


def test_independent_features_look_aligned_only_to_the_biased_estimate():
    values = [align(gram(gaussian(32, 256, 2 * s)), gram(gaussian(32, 256, 2 * s + 1)), whole(32)) for s in range(20)]
    assert min(v.biased for v in values) > 0.8
    unbiased = np.array([v.cka for v in values])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / math.sqrt(20)
    assert abs(unbiased).max() < 0.2


def test_minibatches_average_the_three_terms_before_the_ratio():
    x, y = gaussian(36, 4, 10), gaussian(36, 4, 10) + gaussian(36, 4, 11)
    k, m = gram(x), gram(y)
    batches = minibatches([1] * 36, 9, seed=3)
    xy, xx, yy = [], [], []
    for rows in batches:
        p, q = x[rows], y[rows]
        xy.append(float(hsic1(p @ p.T, q @ q.T)))
        xx.append(float(hsic1(p @ p.T, p @ p.T)))
        yy.append(float(hsic1(q @ q.T, q @ q.T)))

    def ratio(keep: list[int]) -> float:
        cross, first, second = (np.mean(np.array(terms)[keep]) for terms in (xy, xx, yy))
        return cross / math.sqrt(first * second)

    found = align(k, m, batches)
    value = ratio([0, 1, 2, 3])
    assert found.cka == pytest.approx(value, rel=1e-10)
    without = np.array([ratio([j for j in range(4) if j != i]) for i in range(4)])
    error = math.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
    assert found.high == pytest.approx(min(1, value + 3.182446305284263 * error), rel=1e-9)
    assert found.low == pytest.approx(value - 3.182446305284263 * error, rel=1e-9)


def test_jackknife_interval_covers_the_population_value():
    # y = x + e with unit Gaussian rows in d dimensions: HSIC terms are d, d and 4d, so CKA = d / sqrt(d * 4d) = 1/2.
    covered = 0
    for seed in range(100):
        x = gaussian(96, 3, 2 * seed)
        found = align(gram(x), gram(x + gaussian(96, 3, 2 * seed + 1)), minibatches([1] * 96, 12, 0))
        covered += found.low <= 0.5 <= found.high
    assert 85 <= covered <= 100


def test_constant_features_give_null_not_noise():
    constant = torch.full((20, 4), 0.1) + torch.arange(4)
    assert float(gram(constant).abs().max()) == 0
    found = align(gram(constant), gram(gaussian(20, 4, 12)), minibatches([1] * 20, 5, 0))
    assert (found.cka, found.biased, found.low, found.high) == (None, None, None, None)


def test_one_minibatch_has_no_interval():
    found = align(gram(gaussian(10, 3, 13)), gram(gaussian(10, 3, 14)), minibatches([1] * 10, 8, 0))
    assert found.cka is not None
    assert (found.low, found.high) == (None, None)


def test_workload_equals_a_direct_computation(student, probe, runs, tmp_path):
    folder = student[1]
    probe.save(tmp_path / "probe.npz")
    settings = CKASettings(batch_size=6, seed=5, forward_batch_size=7)
    workload = CKA(settings, runs, folder, tmp_path / "probe.npz")
    tasks = workload.tasks()
    assert [(a.name, b.name) for a, b in (t.payload for t in tasks)] == [("base", "r1"), ("base", "r2"), ("r1", "r2")]
    assert len({t.key for t in tasks}) == 3
    state = workload.setup()
    rows = [row for t in tasks for row in workload.compute(state, t.payload)["cka"]]
    assert to_arrow("cka", rows, CKA.tables["cka"]).num_rows == 9 * len(TREATMENTS)
    assert [row["treatment"] for row in rows[:15:3]] == list(TREATMENTS)
    rows = [row for row in rows if row["treatment"] == PLAIN]

    merged = Qwen3ForCausalLM.from_pretrained(folder).eval()
    kept = {name: value.clone() for name, value in merged.state_dict().items()}
    grams = []
    for run in runs:
        merged.load_state_dict(kept)
        with torch.no_grad():
            for name, entry in (run.open() or {}).items():
                merged.get_parameter(name).add_(entry.dense())
        with torch.no_grad():
            states = [
                merged(torch.from_numpy(s.ids)[None], output_hidden_states=True).hidden_states for s in probe.sequences
            ]
        means = [
            [layer[0, s.prompt_length :].mean(0) for layer in layers]
            for s, layers in zip(probe.sequences, states, strict=True)
        ]
        grams.append([gram(torch.stack(layer)) for layer in zip(*means, strict=True)])
    batches = minibatches([1] * 24, 6, 5)
    for row, (pair, layer) in zip(rows, itertools.product([(0, 1), (0, 2), (1, 2)], range(3)), strict=True):
        expected = align(grams[pair[0]][layer], grams[pair[1]][layer], batches)
        assert (row["layer"], row["n"]) == (layer, 24)
        assert row["cka"] == pytest.approx(expected.cka, abs=1e-5)
        assert row["cka_biased"] == pytest.approx(expected.biased, abs=1e-5)
        assert row["low"] == pytest.approx(expected.low, abs=1e-4)
        if layer == 0:
            assert row["cka"] == pytest.approx(1, abs=1e-9), "the deltas leave the embeddings alone"
        else:
            assert row["cka"] < 0.999

    with torch.no_grad():
        for name, value in state.weights.model.named_parameters():
            assert torch.equal(value, kept[name]), "compute must put the base weights back"


def test_embeddings_of_a_common_last_prompt_token_are_null(student, probe, runs, tmp_path):
    probe.save(tmp_path / "probe.npz")
    workload = CKA(CKASettings(pool="last_prompt", batch_size=8), runs[:2], student[1], tmp_path / "probe.npz")
    (task,) = workload.tasks()
    rows = workload.compute(workload.setup(), task.payload)["cka"]
    assert rows[0]["cka"] is None
    assert rows[0]["cka_biased"] is None
    assert all(0 < row["cka"] < 1 for row in rows[1:3])


def test_keys_follow_settings_and_inputs(student, probe, runs, tmp_path):
    probe.save(tmp_path / "probe.npz")

    def keys(settings: CKASettings, chosen: list[Run]) -> list[str]:
        return [t.key for t in CKA(settings, chosen, student[1], tmp_path / "probe.npz").tasks()]

    first = keys(CKASettings(), runs)
    assert first == keys(CKASettings(), runs)
    assert not set(first) & set(keys(CKASettings(seed=1), runs))
    retrained = [*runs[:2], Run("r2", "other", runs[2].delta)]
    assert keys(CKASettings(), retrained)[0] == first[0]
    assert not set(keys(CKASettings(), retrained)[1:]) & set(first)


def test_a_diverged_run_and_a_tiny_probe_are_refused(student, probe, runs, tmp_path):
    probe.save(tmp_path / "probe.npz")
    Probe("few", probe.sequences[:3]).save(tmp_path / "few.npz")
    with pytest.raises(DataError, match="'few' has 3"):
        CKA(CKASettings(), runs, student[1], tmp_path / "few.npz").tasks()
    name = "model.layers.0.mlp.up_proj.weight"
    save_full_delta(tmp_path / "bad", {name: torch.full((64, 32), math.inf)})
    workload = CKA(
        CKASettings(), [runs[0], Run("bad", "kb", str(tmp_path / "bad"))], student[1], tmp_path / "probe.npz"
    )
    with pytest.raises(DeltaError, match="bad"):
        workload.compute(workload.setup(), workload.tasks()[0].payload)


def test_settings_refuse_minibatches_below_four():
    with pytest.raises(ValueError, match="batch_size"):
        CKASettings.model_validate(json.loads('{"batch_size": 3}'))


def test_kernels_that_were_dropped_are_made_again_to_the_same_numbers(student, probe, runs, tmp_path, monkeypatch):
    probe.save(tmp_path / "probe.npz")
    workload = CKA(CKASettings(batch_size=6), runs, student[1], tmp_path / "probe.npz")
    kept, dropped = workload.setup(), workload.setup()
    expected = [workload.compute(kept, task.payload) for task in workload.tasks()]
    assert len(kept.known) == 3
    monkeypatch.setattr(representations, "KEPT_BYTES", 1)
    assert [workload.compute(dropped, task.payload) for task in workload.tasks()] == expected
    assert len(dropped.known) == 2
