import numpy as np
import pytest
import torch

from raygeo.geometry.representation import projection
from raygeo.geometry.representation.projection import count_sketch, projected_grams, standard_error


def splitmix64(state: int) -> int:
    """The published generator's output function."""
    state %= 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_every_entry_is_added_with_its_sign_to_its_place(monkeypatch):
    monkeypatch.setattr(projection, "_CHUNK", 7)
    step, seed, size = 0x9E3779B97F4A7C15, 5, 13
    vector = torch.from_numpy(np.random.default_rng(0).normal(size=40)).float()
    expected = np.zeros(size)
    for number, value in enumerate(vector.double().tolist()):
        bits = splitmix64(number * step + (step * (1 + seed) ^ seed))
        expected[bits % 2**63 % size] += -value if bits >= 2**63 else value
    np.testing.assert_allclose(count_sketch(vector, size, seed).numpy(), expected, rtol=0, atol=1e-14)


def test_inner_products_are_right_on_average_and_off_by_what_is_said():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=3000))
    y = 0.5 * x + torch.from_numpy(rng.normal(size=3000))
    size, draws = 256, 400
    found = np.array([float(count_sketch(x, size, s) @ count_sketch(y, size, s)) for s in range(draws)])
    spread = np.sqrt((float(x @ x) * float(y @ y) + float(x @ y) ** 2) / size)
    assert found.mean() == pytest.approx(float(x @ y), abs=4 * spread / draws**0.5)
    assert found.std() == pytest.approx(spread, rel=0.15)


def test_gram_matrices_keep_squares_and_tell_their_error():
    """The jackknife over parts of one projection against the spread of many, of a cosine of two sums."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=4000) + 2 * rng.normal(size=(6, 4000))
    exact, size = rows @ rows.T, 1024

    def cosine(gram):
        return gram[:3, 3:].sum() / np.sqrt(gram[:3, :3].sum() * gram[3:, 3:].sum())

    values, errors = [], []
    for seed in range(60):
        sketches = np.stack([count_sketch(torch.from_numpy(row), size, seed).numpy() for row in rows])
        gram, *without = projected_grams(sketches, np.diag(exact))
        np.testing.assert_array_equal(np.diag(gram), np.diag(exact))
        values.append(cosine(gram))
        errors.append(standard_error([cosine(each) for each in without]))
    assert np.mean(values) == pytest.approx(cosine(exact), abs=4 * np.std(values) / 60**0.5)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_what_is_not_defined_has_no_error():
    assert standard_error([]) is None
    assert standard_error([0.3, None, 0.4]) is None
    assert standard_error([0.3, 0.3, 0.3]) == 0
