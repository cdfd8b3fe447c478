import numpy as np
import pytest
from scipy import stats

from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.barriers import barrier, barrier_intervals, excess, headroom, maximum_interval

GRID = np.linspace(0, 1, 11)


def test_a_double_well_has_its_closed_form_barrier():
    # L = (1 - (2a - 1)^2)^2 + 0.3 a: wells at both ends, the hump of height 1 in the middle over a tilted chord.
    found = barrier(GRID, (1 - (2 * GRID - 1) ** 2) ** 2 + 0.3 * GRID)
    assert found.chord == pytest.approx(1, abs=1e-12)
    assert found.chord_alpha == 0.5
    assert found.mean == pytest.approx(1 + 0.3 * 0.5 - 0.15, abs=1e-12)
    assert found.mean_alpha == 0.5


@pytest.mark.parametrize("curvature", [-4.0, 2.0])
def test_quadratic_paths(curvature):
    # Along a line a quadratic exceeds its chord by -curvature/2 * a (1 - a).
    losses = 1 + 0.7 * GRID + curvature / 2 * GRID**2
    np.testing.assert_allclose(excess(GRID, losses).chord, -curvature / 2 * GRID * (1 - GRID), atol=1e-12)
    found = barrier(GRID, losses)
    assert found.chord == pytest.approx(max(0, -curvature / 8), abs=1e-12)
    assert found.chord_alpha == (0.5 if curvature < 0 else 0)
    assert found.mean == pytest.approx(losses.max() - (losses[0] + losses[-1]) / 2, abs=1e-12)


def test_a_straight_path_has_no_chord_barrier_but_half_the_gap_over_the_mean():
    found = barrier(GRID, 0.1 + 0.6 * GRID)
    assert (found.chord, found.chord_alpha) == (0, 0)
    assert found.mean == pytest.approx(0.3)
    assert found.mean_alpha == 1


@pytest.mark.parametrize("alphas", [[0, 1, 0.5], [0.1, 1], [0, 0.9], [0.0], [0, 0.5, 0.5, 1]])
def test_grids_without_both_ends_are_refused(alphas):
    with pytest.raises(ValueError, match="alphas"):
        barrier(alphas, np.zeros(len(alphas)))


def test_losses_that_are_not_finite_are_refused():
    with pytest.raises(DeltaError, match=r"alpha = \[0\.5\]"):
        barrier([0, 0.5, 1], [1, np.nan, 1])
    with pytest.raises(ValueError, match="losses for"):
        barrier([0, 0.5, 1], [1, 1])


def noisy_path(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums [3, N] over counts [N]: token means 1, 2 and 1.4, so the chord barrier is 0.8 and the mean barrier 0.8."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, 40, size=n).astype(float)
    shared = rng.normal(0, 0.3, size=n)
    return (
        np.array([0, 0.5, 1]),
        (np.array([[1], [2], [1.4]]) + shared + rng.normal(0, 0.2, size=(3, n))) * counts,
        counts,
    )


def test_bootstrap_is_reproducible_and_follows_its_seed():
    path = noisy_path(50, 0)
    first = barrier_intervals(*path, resamples=500, seed=3)
    assert first == barrier_intervals(*path, resamples=500, seed=3)
    assert first != barrier_intervals(*path, resamples=500, seed=4)


def test_with_one_point_between_the_ends_the_interval_is_scipys_basic_one_widened_as_students():
    _, sums, counts = noisy_path(40, 1)
    sums = sums[[0, len(sums) // 2, -1]]
    found = barrier_intervals([0, 0.5, 1], sums, counts, resamples=20_000, seed=0).chord

    def height(rows: np.ndarray) -> float:
        losses = sums[:, rows].sum(1) / counts[rows].sum()
        return losses[1] - losses[[0, 2]].mean()

    options = {"vectorized": False, "n_resamples": 4000, "method": "basic", "rng": np.random.default_rng(7)}
    basic = stats.bootstrap((np.arange(40),), height, **options).confidence_interval
    middle = height(np.arange(40))
    wider = np.sqrt(40 / 39) * stats.t.ppf(0.975, 39) / stats.norm.ppf(0.975)
    expected = [middle + wider * (end - middle) for end in (basic.low, basic.high)]
    assert found == pytest.approx(expected, abs=0.01)
    assert expected[0] > 0


def test_a_point_that_never_varies_is_known():
    assert maximum_interval([0.5, 0.2], [[0.5, 0.1], [0.5, 0.3]], 2)[0] == 0.5
    assert np.isnan(maximum_interval([0.5, 0.2], [[0.5, 0.2]], 1)).all()


def bent_path(texts: int, height: float, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A path of that true barrier at 0.5, where every text has a course of its own that is flat in the mean."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(20, 120, texts).astype(float)
    waves = np.sin(np.pi * np.arange(1, 5)[:, None] * GRID)
    sizes = np.array([0.1, 0.06, 0.03, 0.02])
    own = {
        "smooth": lambda: (rng.standard_normal((texts, 4)) * sizes) @ waves,
        "heavy tails": lambda: (rng.standard_t(3, (texts, 4)) * sizes) @ waves,
        "rough": lambda: 0.05 * rng.standard_normal((texts, len(GRID))),
    }[kind]()
    losses = rng.lognormal(-1.5, 0.6, (texts, 1)) + own + height * np.sin(np.pi * GRID) ** 2
    return GRID, (losses * counts[:, None]).T, counts


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smooth", "heavy tails", "rough"])
def test_intervals_hold_on_flat_paths_and_on_real_barriers(kind):
    # 400 paths over 48 texts each. Percentiles of resampled maxima exclude 0 in 0.28, 0.31 and 0.64 of flat ones.
    rate = {}
    for height in (0.0, 0.05, 0.3):
        found = [
            barrier_intervals(*bent_path(48, height, kind, seed), resamples=300, seed=0).chord for seed in range(400)
        ]
        rate[height] = np.mean([low <= height <= high for low, high in found])
        above = np.mean([low > 0 for low, _ in found])
        assert above <= 0.05 if height == 0 else above > 0.3 if height == 0.05 else above == 1
    assert min(rate.values()) >= 0.95


def test_bootstrap_is_paired_over_alphas():
    # A difficulty shared by all alphas cancels in the barrier; were alphas resampled apart, the interval would be wide.
    _, _, counts = noisy_path(60, 2)
    difficulty = np.random.default_rng(5).normal(0, 10, size=60)
    sums = (np.array([[1], [2], [1]]) + difficulty) * counts
    chord = barrier_intervals([0, 0.5, 1], sums, counts, resamples=500, seed=0).chord
    assert chord == pytest.approx((1, 1), abs=1e-9)


def test_bootstrap_covers_the_true_barrier():
    covered = 0
    for seed in range(200):
        low, high = barrier_intervals(*noisy_path(60, seed), resamples=300, seed=0).chord
        covered += low <= 0.8 <= high
    assert 176 <= covered <= 199


def refine(function, tolerance: float, budget: int, points: int = 11) -> np.ndarray:
    grid = np.linspace(0, 1, points)
    for _ in range(budget):
        room = headroom(grid, function(grid))
        gap = int(room.argmax())
        if room[gap] <= tolerance:
            break
        grid = np.insert(grid, gap + 1, (grid[gap] + grid[gap + 1]) / 2)
    return grid


def test_a_narrow_barrier_that_the_grid_misses_is_found_by_refining():
    def narrow(a):  # height 1 at 0.44, two thirds of a gap wide; on the grid of eleven 0.135 of it is seen
        return 0.2 + 0.3 * a + np.exp(-(((a - 0.44) / 0.02) ** 2) / 2)

    def narrower(a):
        return 0.2 + 0.3 * a + np.exp(-(((a - 0.455) / 0.015) ** 2) / 2)

    assert barrier(GRID, narrow(GRID)).chord == pytest.approx(np.exp(-2), abs=1e-6)
    assert barrier(GRID, narrower(GRID)).chord < 0.012
    for hump, top in ((narrow, 0.44), (narrower, 0.455)):
        fine = refine(hump, 1e-3, 10)
        found = barrier(fine, hump(fine))
        assert found.chord == pytest.approx(1, abs=0.01)
        assert found.chord_alpha == pytest.approx(top, abs=0.005)
        assert np.isin(GRID, fine).all()


def test_headroom_of_parabolas():
    # -k/2 x^2 rises k h^2 / 8 above the ends of a gap of width h where they are equally high, as in the middle here;
    # the gaps beside it share one of these ends, and the outer ones lie k/2 (0.3^2 - 0.1^2) lower.
    grid = np.array([0, 0.2, 0.4, 0.6, 0.8, 1])
    room = headroom(grid, -5 * (grid - 0.5) ** 2)
    top = 10 * 0.2**2 / 8
    np.testing.assert_allclose(room, [top - 0.4, top, top, top, top - 0.4], atol=1e-12)
    assert headroom(grid, 5 * (grid - 0.5) ** 2).max() == pytest.approx(0, abs=1e-12)
    assert len(refine(lambda a: 3 * a**2, 1e-6, 20)) == 11
    both = headroom(grid, np.stack([5 * (grid - 0.5) ** 2, -5 * (grid - 0.5) ** 2]))
    np.testing.assert_allclose(both, np.maximum(headroom(grid, 5 * (grid - 0.5) ** 2), room))


def test_refining_stops_once_no_barrier_can_rise_by_the_tolerance():
    def hump(a):
        return np.sin(np.pi * a) ** 2 * (1 + 0.4 * a)

    for tolerance in (1e-2, 1e-3, 1e-5):
        fine = refine(hump, tolerance, 50)
        truth = barrier(np.linspace(0, 1, 100_001), hump(np.linspace(0, 1, 100_001))).chord
        assert 0 <= truth - barrier(fine, hump(fine)).chord <= tolerance
