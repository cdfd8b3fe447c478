"""The student of ten words that the tests between runs measure, texts, and two runs of it."""

from pathlib import Path

import pytest
from connectivity_cases import noise, save_probe, save_run, save_student

from raygeo.models.run import Run
from raygeo.tables import BASE


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return save_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def probe_file(tmp_path) -> str:
    return save_probe(tmp_path / "texts.npz")


@pytest.fixture
def runs(student, tmp_path) -> list[Run]:
    """Two runs and the base."""
    return [save_run(tmp_path, f"r{s}", noise(student, s)) for s in (1, 2)] + [Run(BASE, "key-base", None)]
