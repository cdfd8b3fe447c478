from dataclasses import dataclass

import pytest

from raygeo.search.loop import Search
from raygeo.search.optimizer import Suggestion

A = ("a",)


@dataclass(frozen=True)
class Run:
    name: str


class Script:
    """An optimiser that suggests what it was told to, and remembers what it is told."""

    def __init__(self, values):
        self.values, self.asked, self.told = list(values), 0, {}

    def ask(self):
        self.asked += 1
        return Suggestion(self.asked - 1, 0, {A: self.values.pop(0)})

    def tell(self, number, objectives):
        self.told[number] = objectives


def runs_of(space, values):
    return [Run(f"{values[A]}-s{seed}") for seed in (0, 1)]


def search(script, budget=10, **options):
    return Search(script, budget, ["x", "y"], runs_of, **options)


def test_a_configuration_is_judged_by_the_means_over_its_seeds():
    script = Script([1, 2])
    loop = search(script, budget=2)
    assert [loop.next().name for _ in range(4)] == ["1-s0", "1-s1", "2-s0", "2-s1"]
    assert loop.next() is None
    loop.record("2-s0", {"x": 1.0, "y": 5.0, "z": 0.0})
    assert script.told == {}
    loop.record("1-s1", {"x": 3.0, "y": 1.0})
    loop.record("1-s0", {"x": 1.0, "y": 2.0})
    loop.record("2-s1", {"x": 2.0, "y": 7.0})
    assert script.told == {0: [2.0, 1.5], 1: [1.5, 6.0]}


@pytest.mark.parametrize("results", [None, {}, {"x": 1.0}])
def test_a_seed_that_comes_to_nothing_takes_its_configuration_with_it(results):
    script = Script([1])
    loop = search(script, budget=1)
    loop.next(), loop.next()
    loop.record("1-s0", {"x": 1.0, "y": 1.0})
    loop.record("1-s1", results)
    assert script.told == {0: None}


def test_what_was_suggested_before_is_not_trained_again():
    script = Script([1, 1, 2, 1])
    loop = search(script, budget=4)
    assert [loop.next().name for _ in range(4)] == ["1-s0", "1-s1", "2-s0", "2-s1"]
    for name in ("1-s0", "1-s1"):
        loop.record(name, {"x": 1.0, "y": 2.0})
    assert loop.next() is None
    assert script.told == {0: [1.0, 2.0], 1: [1.0, 2.0], 3: [1.0, 2.0]}


def test_what_was_measured_before_is_not_trained():
    script = Script([1, 2])
    known = {"1-s0": {"x": 1.0, "y": 1.0}, "1-s1": {}, "2-s0": {"x": 0.0, "y": 0.0}}
    loop = search(script, budget=2, measured=lambda run: known.get(run.name))
    assert loop.next().name == "2-s1"
    assert script.told == {0: None}
    loop.record("2-s1", {"x": 1.0, "y": 1.0})
    assert script.told == {0: None, 1: [0.5, 0.5]}


def test_everything_suggested_is_saved_before_it_is_given_out():
    saved = []
    loop = search(Script([1, 2]), budget=2, save=lambda asked: saved.append(list(asked)))
    assert loop.next().name == "1-s0"
    assert saved == [[(0, {A: 1})]]
    loop.next()
    assert loop.has_next()
    assert saved == [[(0, {A: 1})], [(0, {A: 1}), (0, {A: 2})]]
