import builtins
import math
from statistics import fmean

import pytest

from raygeo.errors import ConfigError
from raygeo.search.optimizer import Optimizer
from raygeo.search.settings import Constraint
from raygeo.search.space import Choice, Range

LR, BETA, K = ("lr",), ("loss", "beta"), ("k",)
RATES = Range(1e-6, 1e-2, log=True)
SPACES = [{LR: RATES, BETA: Choice((0.1, None))}, {LR: RATES, K: Range(1, 4)}]


def distance(suggestion):
    """Best at lr 1e-4 in the second space with k = 3."""
    away = abs(math.log10(suggestion.values[LR]) + 4)
    return away + (1 if suggestion.space == 0 else 0.2 * abs(suggestion.values[K] - 3))


def optimise(seed, trials=50):
    optimizer = Optimizer(SPACES, ["min"], seed)
    found = []
    for _ in range(trials):
        found.append(optimizer.ask())
        optimizer.tell(found[-1].number, [distance(found[-1])])
    return found


def test_a_configuration_has_the_values_of_its_own_space_alone():
    for suggestion in optimise(0, 20):
        assert suggestion.values.keys() == SPACES[suggestion.space].keys()
        assert f"{suggestion.values[LR]:.4g}" == f"{suggestion.values[LR]:g}"


def test_it_finds_the_better_space_and_the_better_values_in_it():
    searches = [optimise(seed) for seed in range(4)]
    early, late = ([s for found in searches for s in found[part]] for part in (slice(10), slice(-10, None)))
    assert fmean(s.space == 1 for s in late) > 0.75
    assert fmean(map(distance, late)) < 0.6 * fmean(map(distance, early))


def test_it_is_a_function_of_the_seed_and_what_it_was_told():
    assert optimise(1, 15) == optimise(1, 15)
    assert optimise(1, 15) != optimise(2, 15)


def test_what_was_suggested_in_the_past_comes_first_and_what_follows_is_new():
    found = optimise(0, 12)
    optimizer = Optimizer(SPACES, ["min"], 0, [(suggestion.space, suggestion.values) for suggestion in found])
    assert [optimizer.ask() for _ in found] == found
    assert optimizer.ask().values not in [suggestion.values for suggestion in found]


def test_several_objectives_are_pushed_at_once():
    late = []
    for seed in range(4):
        optimizer = Optimizer(SPACES[1:], ["min", "max"], seed)
        for trial in range(40):
            suggestion = optimizer.ask()
            lr = math.log10(suggestion.values[LR])
            optimizer.tell(suggestion.number, [lr, lr if lr < -4 else -10.0])  # beyond 1e-4 both get worse
            late += [lr] * (trial >= 25)
    assert fmean(lr > -4 for lr in late) < 0.3  # half of the range
    assert fmean(lr < -5 for lr in late) > 0.2  # and the front is kept wide


def test_what_comes_to_nothing_is_avoided():
    late = []
    for seed in range(4):
        optimizer = Optimizer(SPACES[1:], ["max"], seed)
        for trial in range(60):
            suggestion = optimizer.ask()
            k = suggestion.values[K]
            optimizer.tell(suggestion.number, None if k > 2 else [float(k)])
            late += [k] * (trial >= 15)
    assert fmean(k > 2 for k in late) < 0.4  # half of the range
    assert fmean(k == 2 for k in late) > 0.4  # a quarter of it


def test_without_optuna_the_extra_is_named(monkeypatch):
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"raygeo\[optuna\]"):
        Optimizer(SPACES, ["min"], 0)


def test_a_bound_is_kept_however_good_it_is_beyond_it():
    """More ``k`` is better, but k > 2 is beyond the bound; the further, the worse."""
    late = {bounded: [] for bounded in (True, False)}
    for bounded in late:
        constraints = [Constraint(metric="cost", at_most=2.0)] if bounded else []
        for seed in range(4):
            optimizer = Optimizer([{K: Range(1, 8)}], ["max"], seed, constraints=constraints)
            for trial in range(40):
                suggestion = optimizer.ask()
                k = float(suggestion.values[K])
                optimizer.tell(suggestion.number, [k, k] if bounded else [k])
                late[bounded] += [k] * (trial >= 20)
    assert fmean(k <= 2 for k in late[True]) > 0.45  # a quarter of the range
    assert fmean(k <= 2 for k in late[False]) < 0.2


def test_what_comes_to_nothing_is_told_under_bounds_too():
    optimizer = Optimizer(SPACES[1:], ["min"], 0, constraints=[Constraint(metric="x", at_most=1.0)])
    for trial in range(15):
        suggestion = optimizer.ask()
        optimizer.tell(suggestion.number, None if trial % 2 else [1.0, 0.5])
