"""``docs/python.md`` runs from top to bottom, and so does the notebook of the quick start."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from run_cases import store_of_runs
from study_cases import save_parts, tiny_study

import raygeo
from raygeo.errors import ConfigError
from raygeo.pipeline.config import parse_study

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NOTEBOOK = DOCS / "python.md", DOCS / "quickstart.ipynb"
RUNS = [{"loss": {"type": "sft"}}, {"loss": {"type": "dpo"}}]


@pytest.fixture(scope="module")
def page(ray_session, tmp_path_factory):
    """The names that the page's code leaves behind, and the folder in which it ran."""
    folder = tmp_path_factory.mktemp("python")
    training = {"steps": 4, "batch_size": 8, "lr": 1e-3, "lora": {"r": 2}, "micro_batch_size": 4}
    norms = {name: None for name in parse_study(tiny_study()).geometry.asked() if name not in ("norms", "similarity")}
    raw = tiny_study(**save_parts(folder), name="mine", training=training, runs=RUNS, geometry=norms)
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw))
    made = store_of_runs(folder / "made")
    for kind, key, name in (("students", "base", "base"), ("deltas", "key-lora", "sft"), ("deltas", "key-lora", "dpo")):
        shutil.copytree(made.folder(kind, key), folder / "models" / name)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.finditer(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
            above = "\n" * block.string.count("\n", 0, block.start(1))
            exec(compile(above + block[1], str(PAGE), "exec"), names)
        yield names, folder


def test_the_study_is_whole_and_read(page):
    names, folder = page
    assert names["finished"] == ["sft-lr0.001-s0", "dpo-lr0.001-s0"]
    assert set(names["accuracy"]["run"]) == {"base", *names["finished"]}
    assert names["sizes"]["runs"] == 2
    assert (folder / "norms.png").stat().st_size > 10_000
    assert names["study"].verdict
    assert names["run"].metrics["geometry/delta_norm"] > 0


def test_a_run_answers_and_is_compared(page):
    names, _ = page
    assert names["prompt"] in names["answer"]
    row, *_ = names["study"].table("similarity").filter(pa.compute.field("scope") == "global").to_pylist()
    assert names["together"] == pytest.approx(row["cosine"], rel=1e-6)


def test_the_notebook_runs_on_any_finished_study(page, tmp_path, monkeypatch):
    _, folder = page
    for place in ("docs", "store"):
        (tmp_path / place).mkdir()
    (tmp_path / "store" / "quickstart").symlink_to(folder / "store" / "mine")
    monkeypatch.chdir(tmp_path / "docs")
    names = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            code = "".join(cell["source"]).removeprefix("%matplotlib inline\n")
            exec(compile(code, f"{NOTEBOOK}, {cell['id']}", "exec"), names)
    row, *_ = names["study"].table("similarity").filter(pa.compute.field("scope") == "global").to_pylist()
    assert names["cosine"] == pytest.approx(row["cosine"], rel=1e-6)
    assert names["chance"] == pytest.approx(row["null_sd"], rel=1e-6)
    assert len(names["accuracy"]) == 3
    assert 1 <= len(names["left"].degrees) <= 4


def test_models_are_compared(page):
    names, _ = page
    rows = names["compared"].table("similarity").to_pylist()
    assert {frozenset((row["run_a"], row["run_b"])) for row in rows} == {frozenset(("sft", "dpo"))}
    assert all(row["cosine"] == pytest.approx(1) for row in rows)


def test_plain_data_is_a_study_too_and_is_not_made_twice(page):
    names, folder = page
    before = {path: path.stat().st_mtime_ns for path in (folder / "store" / "mine" / "deltas").rglob("*")}
    again = raygeo.run(yaml.safe_load((folder / "mine.yaml").read_text()), overrides=["caveats=[a word]"])
    assert again.table("runs").equals(names["study"].table("runs"))
    assert {path: path.stat().st_mtime_ns for path in (folder / "store" / "mine" / "deltas").rglob("*")} == before


def test_what_is_wrong_in_plain_data_is_said():
    with pytest.raises(ConfigError, match="study:\n- --set trainig=1: trainig: unknown key; did you mean 'training'"):
        raygeo.run(tiny_study(), overrides=["trainig=1"])
