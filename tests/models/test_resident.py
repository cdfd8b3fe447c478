import pytest
import torch
from connectivity_cases import noise, save_run, save_student

from raygeo.errors import DeltaError
from raygeo.models.resident import Measured, ResidentStudent
from raygeo.models.run import Run
from raygeo.tables import BASE

NAME = "model.norm.weight"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student"))


def test_a_run_is_measured_once_and_a_mixture_every_time(student, tmp_path):
    runs = [Run(BASE, "key-base", None), *(save_run(tmp_path, f"r{s}", noise(student, s)) for s in (1, 2))]
    resident = ResidentStudent.load(student, runs)
    kept = {name: value.detach().clone() for name, value in resident.model.named_parameters()}
    calls = []

    def weight(model):
        calls.append(1)
        return dict(model.named_parameters())[NAME].detach().clone()

    measured = Measured(resident, weight)
    first, second = (noise(student, seed)[NAME] for seed in (1, 2))
    for _ in range(2):
        torch.testing.assert_close(measured.at_run(runs[0]), kept[NAME], rtol=0, atol=0)
        torch.testing.assert_close(measured.at_run(runs[1]), kept[NAME] + first)
        torch.testing.assert_close(measured.at_run(runs[1], 0.5), kept[NAME] + 0.5 * first)
    assert len(calls) == 3
    for _ in range(2):
        mixed = measured.at([*runs[1].mixture(0.25), *runs[2].mixture(2.0)])
        torch.testing.assert_close(mixed, kept[NAME] + 0.25 * first + 2 * second)
    assert len(calls) == 5
    assert all(torch.equal(value, kept[name]) for name, value in resident.model.named_parameters())


def test_runs_it_was_not_loaded_for_are_refused(student, tmp_path):
    runs = [save_run(tmp_path, name, {parameter: torch.ones(16)}) for name, parameter in (("a", NAME), ("b", "odd"))]
    with pytest.raises(DeltaError, match="'odd'"):
        ResidentStudent.load(student, runs)
    with pytest.raises(DeltaError, match="odd"):
        Measured(ResidentStudent.load(student, runs[:1]), lambda model: None).at_run(runs[1])
