"""The recipes in docs/CONTRIBUTING.md, followed to the letter in a copy of the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import raygeo

REPOSITORY = Path(raygeo.__file__).parents[1]
PLACES = {
    "A loss": "raygeo/losses",
    "An analysis": "raygeo/analyses/moved",
    "A reader": "raygeo/data/readers",
    "An engine": "raygeo/generation",
}
CHECKS = """
import json, sys
from pathlib import Path
import torch
sys.path.append("tests")
from study_cases import draw_rollouts
from tiny import save_tiny_student
from pydantic import TypeAdapter
from raygeo.analyses.registry import analyses, parts
from raygeo.data.readers import AnyReader
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import renderer_for
from raygeo.losses.base import LossInputs
from raygeo.losses.registry import LOSSES
from raygeo.models.loading import load_student
from raygeo.pipeline.config import parse_study

study = parse_study({
    "name": "s", "rollouts": {"read": [{"type": "documents", "path": "r.yaml", "fields": {"completion": "answer"}}]},
    "runs": [{"loss": {"type": "hinge", "beta": 0.5}}], "geometry": {"moved": {"above": 0.1}},
    "evaluation": {"engine": {"type": "uncached"}},
})
assert study.geometry.moved.above == 0.1
assert study.specs()[0].name == "hinge-lr1e-05-s0"
chosen = torch.tensor([[-1.0], [-3.0]])
inputs = LossInputs(
    logprobs=chosen, mask=torch.ones(2, 1, dtype=torch.bool), weights=torch.ones(2),
    reference_logprobs=torch.full((2, 1), -2.0), pairs=torch.tensor([[0, 1]]),
)
assert LOSSES["hinge"](beta=0.5)(inputs).total.item() == 0.0, "beta d is 1, all of the margin"
assert abs(LOSSES["hinge"](beta=0.1)(inputs).total.item() - 0.8) < 1e-6
assert analyses()["moved"].cost is not None and any(s.title == "Weights that moved" for s in parts().sections)
Path("r.yaml").write_text("{prompt: 1 or 2, answer: '3', correct: true}\\n---\\n{prompt: q, correct: false}\\n")
first, second = study.rollouts.read[0].rollouts()
assert (first.values["prompt"], first.values["completion"]) == ("1 or 2", "3")
assert second.error == "missing field 'answer'"
model, tokenizer = load_student(save_tiny_student(Path("student")))
renderer = renderer_for(tokenizer)
asked = Request([row["prompt"] for row in draw_rollouts(3, samples=1).to_pylist()], max_new_tokens=6)
engine = study.evaluation.engine
assert engine.identity == "uncached"
with engine.students("student").mixed([]) as loaded:
    written = engine.engine(loaded, renderer, 8).generate(asked)
assert written == LocalEngine(model, renderer).generate(asked)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package and the recipes' files in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("raygeo", "tests", "checks", "pyproject.toml"):
        source = REPOSITORY / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    for title, place in PLACES.items():
        for name, code in recipe(title):
            (folder / place).mkdir(exist_ok=True)
            assert not (folder / place / name).exists()
            (folder / place / name).write_text(code)
    (folder / "raygeo/analyses/moved/__init__.py").touch()
    return folder


def recipe(title: str) -> list[tuple[str, str]]:
    """The files of a recipe: the name that stands before each block of code, and the code."""
    text = (REPOSITORY / "docs" / "CONTRIBUTING.md").read_text()
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    pieces = re.split(r"```python\n(.*?)```\n", section[1], flags=re.DOTALL)
    names = [re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", before)[-1] for before in pieces[:-1:2]]
    return list(zip(names, pieces[1::2], strict=True))


@pytest.mark.slow
def test_what_the_recipes_add_is_found_and_works(copy):
    done = subprocess.run([sys.executable, "-c", CHECKS], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_recipes_are_written_as_the_house_is(copy):
    files = [f"{place}/{name}" for title, place in PLACES.items() for name, _ in recipe(title)]
    assert len(files) == 7
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *files], cwd=copy, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
