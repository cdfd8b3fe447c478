"""A loss of another package is found wherever losses are named, and nothing in raygeo knows of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raygeo.errors import ConfigError
from raygeo.losses.registry import find_losses

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).parents[2]

HEAD = """
from typing import ClassVar, Literal

from raygeo.losses.pointwise import Pointwise
from raygeo.losses.sft import SFT

"""
TOY = f"""{HEAD}
class Toy(Pointwise):
    \"\"\"A share of the negative log-likelihood of the rollouts, right or wrong.\"\"\"

    title: ClassVar[str] = "Toy"
    paper: ClassVar[str] = "none"
    formula: ClassVar[str] = "-share sum_t log p_t"
    revision: ClassVar[int] = 7
    variants: ClassVar = (*Pointwise.variants, {{"share": 0.5}})

    type: Literal["toy"] = "toy"

    share: float = 1.0
    \"\"\"What the log-likelihood is multiplied by.\"\"\"

    def row_weights(self, group):
        return [self.share] * len(group.rows)

    def token_objective(self, inputs):
        return inputs.logprobs
"""
USE = """
import json

import toy_losses  # before raygeo, as where an instance is unpickled
from golden_curves import train
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.losses.registry import LOSSES, ORIGINS, variants
from raygeo.pipeline.config import parse_study

study = parse_study(
    {"name": "t", "rollouts": {"sample": {"prompts": 8}}, "training": {"steps": 2},
     "runs": [{"loss": {"type": "toy", "share": [1.0, 2.0]}}, {"loss": "all", "seed": 3}]}
)
specs = {spec.name: spec for spec in study.specs()}
tried = variants(LOSSES["toy"])
print(json.dumps({
    "origins": ORIGINS,
    "runs": list(specs),
    "key": specs["toy-share2-lr1e-05-s0"].key("student", "rollouts"),
    "variants": list(tried),
    "curves": [train(tried["toy"]), train(tried["toy-share0.5"]), train(LOSSES["sft"]())],
    "list": CliRunner().invoke(app, ["losses"]).output,
    "told": CliRunner().invoke(app, ["losses", "toy"]).output,
}))
"""


def install(folder: Path, source: str, module: str = "toy_losses", points: str = "toy = {}:Toy") -> None:
    """Lay out what an installed package leaves: its module, and what it declares."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-losses\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[raygeo.losses]\n{points.format(module)}\n")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python where the package in ``folder`` is installed."""
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests", ROOT / "tests" / "losses")))
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "250"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install(folder, TOY)
    done = python(folder, "-c", USE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_study_takes_it(used):
    assert used["runs"][:2] == ["toy-share1-lr1e-05-s0", "toy-share2-lr1e-05-s0"]
    assert used["runs"][2] == "sft-lr1e-05-s3"
    assert used["runs"][-1] == "toy-lr1e-05-s3"
    assert used["key"].endswith("-r1.7")


def test_it_is_listed_last_with_its_origin(used):
    assert list(used["origins"])[-1] == "toy"
    assert (used["origins"]["sft"], used["origins"]["toy"]) == ("raygeo", "toy-losses")
    [line] = [line for line in used["list"].splitlines() if line.split()[:1] == ["toy"]]
    assert "-share sum_t log p_t" in line
    assert line.split()[-1] == "toy-losses"
    assert "(type: toy, from toy-losses)" in used["told"]
    assert "What the log-likelihood is multiplied by." in used["told"]


def test_it_trains_in_each_of_its_variants(used):
    assert used["variants"] == ["toy", "toy-normalization=sequence", "toy-share0.5"]
    whole, half, sft = used["curves"]
    assert whole == sft
    assert half[0] == pytest.approx(whole[0] / 2)
    assert whole[-1] < whole[0]


def test_one_that_cannot_be_loaded_is_named_without_a_traceback(tmp_path):
    install(tmp_path, "import a_package_that_is_not_there")
    done = python(tmp_path, "-m", "raygeo", "losses")
    assert done.returncode == 2
    assert "the loss 'toy' of toy-losses cannot be loaded (ModuleNotFoundError: No module named 'a_pack" in done.stderr
    assert "Traceback" not in done.stderr


OWN_TYPE = '    type: Literal["toy"] = "toy"\n'
REFUSED = {
    "is 3, not a subclass of Loss": f"{HEAD}Toy = 3",
    "is <class 'str'>, not a subclass of Loss": f"{HEAD}Toy = str",
    "two losses have the type 'sft', one of raygeo, one of toy-losses": f"{HEAD}class Toy(SFT): pass",
    "of toy-losses has no type of its own": TOY.replace(OWN_TYPE, ""),
    "of toy-losses has no paper": TOY.replace('    paper: ClassVar[str] = "none"\n', ""),
    "cannot be made with its defaults: .*share": TOY.replace("share: float = 1.0", "share: float"),
    "cannot be made with its defaults: .*token_objective": TOY.replace("token_objective", "objective"),
}


@pytest.mark.parametrize("said", REFUSED)
def test_one_that_is_not_a_loss_or_not_whole_is_refused(said, tmp_path, monkeypatch):
    module = f"toy_losses_{list(REFUSED).index(said)}"
    install(tmp_path, REFUSED[said], module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        find_losses()


def test_two_of_one_type_are_refused(tmp_path, monkeypatch):
    install(tmp_path, TOY, "toy_losses_twice", "toy = {0}:Toy\nagain = {0}:Toy")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="two losses have the type 'toy', one of toy-losses, one of toy-losses"):
        find_losses()
