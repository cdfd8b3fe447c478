"""Losses and analyses of a study's own, named as ``module:name`` and found beside the study file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from study_cases import save_parts, tiny_study

import raygeo
from raygeo.analyses.registry import analyses, know
from raygeo.errors import ConfigError
from raygeo.losses.registry import own_loss
from raygeo.pipeline.config import load_study, parse_study, study_yaml
from raygeo.pipeline.written import read_yaml
from raygeo.training.settings import RunSpec

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

PARTS = Path(__file__).with_name("own_parts.py")
HINGE = {"type": "own_parts:Hinge"}


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """The study at hand is the process's: the tests behind these have none with analyses of its own."""
    yield
    know(())


def study(*losses, geometry=None, **changes):
    return tiny_study(runs=[{"loss": loss} for loss in losses], geometry=geometry or {}, **changes)


def test_an_own_loss_is_a_loss_of_the_study():
    found = parse_study(study(HINGE | {"beta": [0.1, "2e-1"]}, {"type": "sft"}))
    assert [spec.name for spec in found.specs()] == [
        "Hinge-beta0.1-lr0.001-s0",
        "Hinge-beta0.2-lr0.001-s0",
        "sft-lr0.001-s0",
    ]
    assert found.specs()[1].loss == own_loss("own_parts:Hinge")(type="own_parts:Hinge", beta=0.2)
    assert parse_study(read_yaml(study_yaml(found))) == found
    for spec in found.specs():
        assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("own_parts:Hing", "'own_parts:Hing' cannot be loaded: AttributeError"),
        ("nowhere_to_be_found:Hinge", "there is no module 'nowhere_to_be_found' beside the study file, in the working"),
        ("own_parts:MOVED", "own_parts:MOVED is Analysis.* not a subclass of Loss"),
        ("raygeo.losses.sft:SFT", "has the type 'sft'; leave its type out"),
        ("raygeo.losses.pairwise:Pairwise", "has no title"),
    ],
)
def test_what_is_no_loss_is_refused(named, said):
    with pytest.raises(ConfigError, match=said):
        parse_study(study({"type": named}))


def test_a_wrong_option_of_an_own_loss_is_named():
    with pytest.raises(ConfigError, match=r"runs\.0\.loss\.betta: unknown key; did you mean 'beta'"):
        parse_study(study(HINGE | {"betta": 1}))
    with pytest.raises(ConfigError, match=r"runs\.0\.loss\.beta: Input should be greater than 0"):
        parse_study(study(HINGE | {"beta": 0}))


def test_a_module_that_fails_is_told_with_its_line(tmp_path):
    (tmp_path / "faulty_parts.py").write_text("from raygeo.losses.pairwise import Pairwise\n\nraise KeyError('mine')\n")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study({"type": "faulty_parts:Hinge"})))
    with pytest.raises(ConfigError, match=r"cannot be loaded: KeyError in .*faulty_parts.py, line 3: 'mine'"):
        load_study(tmp_path / "study.yaml")


def test_runs_are_trained_anew_where_the_text_of_their_loss_has_changed(tmp_path):
    code = "from raygeo.pipeline.config import load_study; print(load_study('study.yaml').specs()[0].key('s', 'r'))"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study(HINGE)))
    keys = []
    for more in ("", "# a word\n", ""):
        (tmp_path / "own_parts.py").write_text(PARTS.read_text() + more)
        keys.append(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True))
    assert keys[0] == keys[2] != keys[1]


ASKED = """
import sys
sys.path.append(TESTS)
from study_cases import tiny_study
from raygeo.analyses.registry import analyses, know
from raygeo.errors import ConfigError
from raygeo.pipeline.config import Study, parse_study, study_yaml
from raygeo.pipeline.written import read_yaml

def study(geometry, **more):
    return parse_study(tiny_study(geometry=geometry, **more))

def refused(geometry, **more):
    try:
        study(geometry, **more)
    except ConfigError as error:
        return str(error)

assert "own_parts:Hinge is ModelMetaclass, not an Analysis" in refused({"own_parts:Hinge": {}})
assert "geometry.nroms: unknown key; did you mean 'norms'" in refused({"nroms": {}})
assert "moved" not in analyses()
found = study({"own_parts:MOVED": {"above": 1.0}, "norms": None})
assert found.geometry.asked()["moved"].above == 1.0
assert "norms" not in found.geometry.asked()
assert list(analyses())[-1] == "moved"
assert parse_study(read_yaml(study_yaml(found))) == found
judged = {"sweep": {"objectives": [{"metric": "geometry/moved_entries"}]}}
sweep = tiny_study(geometry={"own_parts:MOVED": {}}, **judged)
know(())
assert Study.model_validate(sweep, context={}).judged.metrics == ["geometry/moved_entries"]
assert "is no metric" in refused({}, **judged)
assert "moved" not in study({"own_parts:MOVED": None}).geometry.asked()
both = study({"own_parts:AFTER": {}, "own_parts:MOVED": {}})
assert list(both.geometry.asked())[-2:] == ["moved", "after-moved"]
assert "must come after 'moved'" in refused({"own_parts:AFTER": {}})
assert "moved" not in study({}).geometry.asked()
assert "moved" not in analyses()
assert found.geometry.asked()["moved"].above == 1.0
assert "abve" in refused({"own_parts:MOVED": {"abve": 1}})
assert "Input should be greater" in refused({"own_parts:MOVED": {"above": -1}})
"""


def test_an_own_analysis_is_asked_for_by_its_path():
    """In a process of its own; it is known of the study that asks for it alone."""
    code = ASKED.replace("TESTS", repr(str(PARTS.parent)))
    done = subprocess.run([sys.executable, "-c", code], cwd=PARTS.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_own_analysis_is_found_beside_the_file_of_a_comparison(tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.copy(PARTS, tmp_path / "mine" / "own_parts.py")
    asked = {"base": "b", "models": [{"name": "m", "model": "m"}], "geometry": {"own_parts:MOVED": {"above": 0.5}}}
    (tmp_path / "mine" / "compared.yaml").write_text(yaml.safe_dump(asked))
    code = (
        "from raygeo.pipeline.comparison import load_comparison\n"
        "print(load_comparison('mine/compared.yaml').geometry.asked()['moved'].above)"
    )
    known = os.environ | {"PYTHONPATH": str(Path(raygeo.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=known, capture_output=True, text=True)
    assert found.stdout == "0.5\n", found.stderr


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study with own parts in a folder that is not the working one, run as a user does."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine").mkdir()
    shutil.copy(PARTS, folder / "mine" / "own_parts.py")
    off = {name: None for name in analyses() if name != "norms"}
    raw = study(
        HINGE, {"type": "own_parts:Broken"}, **save_parts(folder),
        geometry={**off, "own_parts:MOVED": {}, "own_parts:STUCK": {}}, store=str(folder / "store"),
        evaluation={"heldout": False},
    )  # fmt: skip
    (folder / "mine" / "study.yaml").write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "raygeo", "run", "mine/study.yaml"]
    known = os.environ | {"PYTHONPATH": str(Path(raygeo.__file__).parents[1])}
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)
    assert (folder / "store" / "report.html").exists(), done.stderr
    return folder, done


def test_own_parts_are_trained_and_measured_in_workers(ran):
    folder, _ = ran
    results = raygeo.open(str(folder / "store"))
    run = results.run("Hinge-lr0.001-s0")
    assert (run.record.status, run.record.label) == ("finished", "Hinge")
    [row] = results.table("moved").to_pylist()
    delta = run.delta()
    assert row == {"run": run.name, "entries": sum(int((delta[name].dense() != 0).sum()) for name in delta)}
    assert "Weights that moved, by somebody" in (folder / "store" / "report.html").read_text()


def test_what_failed_in_a_worker_is_told_as_it_was(ran):
    folder, done = ran
    results = raygeo.open(str(folder / "store"))
    assert done.returncode == 2
    assert results.run("Broken-lr0.001-s0").record.status == "failed"
    missing = json.dumps(results.table("missing").to_pylist())
    for said in ("ValueError: the margin of somebody's own loss", "ValueError: the count of somebody's own analysis"):
        assert said in done.stderr
        assert said in missing or said in results.run("Broken-lr0.001-s0").record.reason
    assert "own_parts.py" in done.stderr


def test_the_page_is_written_anew_by_a_process_that_finds_the_parts(ran):
    folder, _ = ran
    command = [sys.executable, "-m", "raygeo", "report", "store"]
    paths = {True: folder / "mine", False: folder}
    for found, place in paths.items():
        known = os.environ | {"PYTHONPATH": f"{Path(raygeo.__file__).parents[1]}{os.pathsep}{place}"}
        subprocess.run(command, cwd=folder, env=known, check=True, capture_output=True)
        text = (folder / "store" / "report.html").read_text()
        assert ("Weights that moved, by somebody" in text) is found
        assert ("the analysis own_parts:MOVED failed and was left out" in text) is not found
