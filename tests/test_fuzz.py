"""A few hundred cases of bad input, and some that once ended in a traceback; ``python -m checks.fuzz`` tries more."""

import pytest

from checks import fuzz
from raygeo.errors import ConfigError
from raygeo.pipeline.config import parse_study

pytestmark = pytest.mark.cluster

CASES = {
    "study": 80,
    "nonsense": 40,
    "rollouts": 60,
    "grading": 30,
    "adapter": 60,
    "model": 20,
    "store": 12,
    "path": 60,
}
ONCE = {
    "study": (19, 36, 49, 197, 221, 223),
    "rollouts": (1291,),
    "adapter": (32, 40, 104),
    "model": (11, 22, 39, 234),
    "store": (6, 14, 19),
}


@pytest.fixture(autouse=True)
def _on_a_busy_machine(monkeypatch):
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 10 * fuzz.CPU_SECONDS)  # what hangs is stopped all the same


@pytest.mark.parametrize("kind", CASES)
def test_bad_input_is_used_refused_by_name_or_set_aside(kind):
    [outcome] = fuzz.run(CASES[kind], kinds=(kind,)).values()
    assert outcome.findings == []
    assert outcome.cases == CASES[kind]
    assert outcome.refused


@pytest.mark.parametrize("path", dict.fromkeys(path for path, _ in fuzz.NONSENSE))
def test_what_cannot_work_is_refused_by_its_place(path):
    for value in (value for other, values in fuzz.NONSENSE if other == path for value in values):
        with pytest.raises(ConfigError) as raised:
            parse_study(fuzz.with_value(path, value))
        assert path in str(raised.value) or "more than 20,000 values" in str(raised.value)


@pytest.mark.parametrize("kind", ONCE)
def test_what_once_ended_in_a_traceback_is_refused_by_name(kind):
    outcome = fuzz.Outcome()
    for seed in ONCE[kind]:
        fuzz.attempt(kind, seed, outcome)
    assert outcome.findings == []


def test_a_librarys_error_a_wait_and_what_cannot_work_are_findings(monkeypatch):
    def fails(rng, folder):
        raise KeyError("of a library")

    def waits(rng, folder):
        while True:
            pass

    def takes(rng, folder):
        raise fuzz.Accepted("betas: [2, -3]")

    for case, said in ((fails, "KeyError"), (waits, "did not end"), (takes, r"accepted: betas: [2, -3]")):
        monkeypatch.setitem(fuzz.KINDS, "study", (case, 1))
        outcome = fuzz.Outcome()
        fuzz.attempt("study", 0, outcome, patience=1)
        [(_, found)] = outcome.findings
        assert found.startswith(said)
