import numpy as np
import pytest
import torch
from connectivity_cases import compute_all, noise, save_probe, save_run
from delta_cases import gaussian, low_rank, save_lora
from transformers import Qwen3ForCausalLM

from raygeo.analyses.planes.workload import Planes, PlanesSettings
from raygeo.data.probes import Probe, nll
from raygeo.errors import ConfigError, DeltaError
from raygeo.geometry.connectivity.mixtures import delta_gram
from raygeo.geometry.connectivity.planes import Plane
from raygeo.models.delta import Dense
from raygeo.models.run import Run
from raygeo.tables import BASE


def points(n: int, seed: int = 0, dimension: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dimension))


def test_the_corners_reproduce_their_pairwise_distances():
    for seed in range(20):
        x = points(3, seed) * np.array([[1.0], [13.0], [0.3]])
        corners = Plane.of(x @ x.T).corners
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert np.linalg.norm(corners[i] - corners[j]) == pytest.approx(np.linalg.norm(x[i] - x[j]), rel=1e-10)
        assert corners[2, 1] > 0


def test_points_of_the_plane_are_mixtures_that_lie_where_they_should():
    x = points(3)
    plane = Plane.of(x @ x.T)
    u = (x[1] - x[0]) / plane.base
    v = (x[2] - x[0]) - ((x[2] - x[0]) @ u) * u
    v /= np.linalg.norm(v)
    for at in ([0, 0], [1.3, -0.4], [-2.0, 5.0], *plane.corners):
        coefficients = plane.coefficients(*at)
        assert sum(coefficients) == pytest.approx(1, abs=1e-14)
        np.testing.assert_allclose(coefficients @ x, x[0] + at[0] * u + at[1] * v, atol=1e-12)
    for i, corner in enumerate(plane.corners):
        np.testing.assert_allclose(plane.coefficients(*corner), np.eye(3)[i], atol=1e-14)


def test_projections_are_those_of_dense_least_squares():
    x = points(7)
    plane = Plane.of(x[:3] @ x[:3].T)
    basis = np.linalg.qr((x[1:3] - x[0]).T)[0]
    for row, other in zip(plane.project(x @ x.T), x[3:], strict=True):
        inside = basis @ (basis.T @ (other - x[0]))
        np.testing.assert_allclose(plane.coefficients(*row[:2]) @ x[:3], x[0] + inside, atol=1e-11)
        assert row[2] == pytest.approx(np.linalg.norm(other - x[0] - inside), rel=1e-11)
    combination = np.vstack([x[:3], [0.2, 0.5, 0.3] @ x[:3]])
    assert plane.project(combination @ combination.T)[0, 2] < 1e-6


def test_the_grid_covers_the_corners_with_its_margin():
    xs, ys = Plane(4.0, 1.0, 2.0).axes(5, 0.25)
    np.testing.assert_allclose(xs, [-1, 0.5, 2, 3.5, 5])
    np.testing.assert_allclose(ys, [-0.5, 0.25, 1, 1.75, 2.5])
    xs, _ = Plane(4.0, -2.0, 2.0).axes(2, 0)
    np.testing.assert_allclose(xs, [-2, 4])


def test_three_points_on_a_line_and_equal_ones_are_refused():
    x = points(2)
    line = np.vstack([x, 0.3 * x[0] + 0.7 * x[1]])
    with pytest.raises(DeltaError, match="one line"):
        Plane.of(line @ line.T)
    equal = np.vstack([x, x[:1]])
    with pytest.raises(DeltaError, match="same weights"):
        Plane.of(equal @ equal.T)


def test_inner_products_of_any_deltas_equal_dense_ones():
    deltas = [
        {"q": low_rank(8, 6, 2, seed=1), "n": Dense(gaussian(5, seed=2))},
        {"q": Dense(gaussian(8, 6, seed=3))},
        None,
        {"q": low_rank(8, 6, 3, seed=4), "v": low_rank(4, 6, 2, seed=5)},
    ]
    flat = [
        torch.cat(
            [
                (delta[name].dense(torch.float64) if name in delta else torch.zeros(size)).double().flatten()
                for name, size in (("q", 48), ("n", 5), ("v", 24))
            ]
        )
        for delta in (delta or {} for delta in deltas)
    ]
    expected = torch.stack(flat) @ torch.stack(flat).T
    np.testing.assert_allclose(delta_gram(deltas), expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.fixture
def runs(student, tmp_path):
    lora = save_lora(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": low_rank(16, 16, 2, seed=1, scale=0.3)})
    return [
        Run(BASE, "key-base", None),
        save_run(tmp_path, "r1", noise(student, 1)),
        Run("lora", "key-lora", str(lora)),
        save_run(tmp_path, "r2", noise(student, 2)),
    ]


def test_losses_on_a_grid_and_at_all_runs(student, runs, tmp_path):
    probe = save_probe(tmp_path / "texts.npz")
    settings = PlanesSettings(points=3, margin=0.5, sequences=5, planes=(("r1", "base", "lora"),))
    found = compute_all(Planes(settings, runs, student, probe, "r1"))
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    kept = {name: value.clone() for name, value in model.named_parameters()}
    deltas = {run.name: {n: e.dense() for n, e in (run.open() or {}).items()} for run in runs}
    texts = Probe("few", Probe.load(probe).sequences[:5]).batches(0, 16)

    def loss(**coefficients):
        with torch.no_grad():
            for name, value in model.named_parameters():
                terms = [c * deltas[run][name] for run, c in coefficients.items() if name in deltas[run]]
                value.copy_(kept[name] + sum(terms))
        return nll(model, texts)

    flat = {run: {n: v.double() for n, v in delta.items()} for run, delta in deltas.items()}
    gram = delta_gram([{n: Dense(v) for n, v in flat[run].items()} for run in ("r1", "base", "lora")])
    plane = Plane.of(gram)
    assert len(found["planes"]) == 9
    for row in found["planes"]:
        first, _, third = plane.coefficients(row["x"], row["y"])
        assert row["nll"] == pytest.approx(loss(r1=first, lora=third), rel=2e-6)
        assert (row["run_a"], row["run_b"], row["run_c"], row["n"]) == ("r1", "base", "lora", 5)
    places = {row["run"]: row for row in found["plane_runs"]}
    assert list(places) == ["r1", "base", "lora", "r2"]
    for name in places:
        assert places[name]["nll"] == pytest.approx(loss(**{name: 1.0}), rel=1e-6)
    assert [places[name]["residual"] for name in ("r1", "base", "lora")] == [0, 0, 0]
    assert places["r2"]["residual"] > 1
    norm = np.sqrt(delta_gram([runs[1].open()])[0, 0])
    assert places["base"]["x"] == pytest.approx(norm, rel=1e-10)


def test_a_point_without_a_finite_loss_is_left_empty_and_a_run_is_refused(student, runs, tmp_path):
    probe = save_probe(tmp_path / "texts.npz")
    wild = save_run(tmp_path, "wild", {"model.norm.weight": torch.full((16,), 3e38)})
    settings = PlanesSettings(points=2, planes=(("base", "r1", "wild"),))
    workload = Planes(settings, [*runs, wild], student, probe, "r1")
    assert None in [row["nll"] for row in compute_all(workload, 0, 1)["planes"]]
    with pytest.raises(DeltaError, match="wild"):
        compute_all(workload, 2)


def test_planes_keys_and_refusals(student, runs, tmp_path):
    probe = save_probe(tmp_path / "texts.npz")

    def tasks(ends=runs, **settings):
        return Planes(PlanesSettings(points=2, **settings), ends, student, probe, "r1").tasks()

    corners = [tuple(run.name for run in task.payload[0]) for task in tasks()]
    assert corners == [("base", "r1", "lora")] * 3 + [("base", "r1", "r2")] * 3
    fewer = tasks(ends=runs[:3])
    assert [a.key == b.key for a, b in zip(tasks(), fewer, strict=False)] == [True, True, False]
    assert len({task.key for task in tasks()}) == 6
    assert [a.key == b.key for a, b in zip(tasks(margin=0.1), tasks(), strict=True)] == [False, False, True] * 2
    assert [task.key for task in tasks(sequences=99)] == [task.key for task in tasks()], "there are 13 texts"
    assert tasks(sequences=5)[0].key != tasks()[0].key
    with pytest.raises(ConfigError, match="'gone'"):
        tasks(planes=(("base", "r1", "gone"),))
