"""``docs/notebook.md`` runs from top to bottom, and its numbers are those of the analyses."""

import importlib
import inspect
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from delta_cases import all_rows, gaussian, low_rank, save_lora
from peft import LoraConfig, get_peft_model
from study_cases import draw_rollouts
from tiny import save_tiny_student

import raygeo.geometry
from raygeo.analyses.cka.workload import CKA, CKASettings
from raygeo.analyses.curvature.density import SpectralDensity
from raygeo.analyses.curvature.extremes import ExtremeEigenvalues
from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.analyses.paths.workload import Paths, PathsSettings
from raygeo.analyses.similarity.workload import Similarity, SimilaritySettings
from raygeo.analyses.subspaces.workload import Subspaces, SubspaceSettings
from raygeo.errors import WorkloadError
from raygeo.geometry import GGN, load_student, open_delta
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"
MATRIX = "model.layers.0.self_attn.q_proj"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def save_models(folder: Path) -> None:
    """A base, a complete model and an adapter tuned from it, eight texts, and runs of three losses and three seeds."""
    base = save_tiny_student(folder / "models" / "base")
    model, tokenizer = load_student(base)
    changes = {n: 0.02 * gaussian(*p.shape, seed=i) for i, (n, p) in enumerate(model.named_parameters())}
    adapter = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION))
    with torch.no_grad():
        for i, (name, parameter) in enumerate(adapter.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(0.1 * gaussian(*parameter.shape, seed=i))
    adapter.save_pretrained(folder / "models" / "dpo")
    model, _ = load_student(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(changes[name])
    model.save_pretrained(folder / "models" / "sft")
    tokenizer.save_pretrained(folder / "models" / "sft")
    right = {row["prompt"]: row["completion"] for row in draw_rollouts(12, seed=1).to_pylist() if row["correct"]}
    lines = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in right.items()]
    (folder / "texts.jsonl").write_text("\n".join(lines[:8]))
    for place, loss in enumerate(("sft", "dpo", "kto")):
        for seed in range(3):
            entry = low_rank(32, 32, 2, seed=place)
            entry.b.add_(0.3 * gaussian(32, 2, seed=100 + 10 * place + seed))
            save_lora(folder / "runs" / f"{loss}-s{seed}", {MATRIX: entry})
    for step in (1, 2, 4):
        save_full_delta(folder / "snapshots" / f"step-{step:06d}", {n: step / 4 * t for n, t in changes.items()})


def blocks() -> list[re.Match]:
    """The page's code, block by block."""
    return list(re.finditer(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where the reader's models are, and where the notebook runs."""
    where = tmp_path_factory.mktemp("notebook")
    save_models(where)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        yield where


@pytest.fixture(scope="module")
def page(folder) -> dict:
    """The names that the page's code leaves behind, all of it having been run in order."""
    names = {}
    for block in blocks():
        above = "\n" * block.string.count("\n", 0, block.start(1))
        exec(compile(above + block[1], str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def runs(folder) -> list[Run]:
    base = folder / "models" / "base"
    return [Run("sft", "sft", folder / "models" / "sft", base=base), Run("dpo", "dpo", folder / "models" / "dpo")]


@pytest.fixture(scope="module")
def probe(page, folder) -> Path:
    page["probe"].save(folder / "texts.npz")
    return folder / "texts.npz"


def test_cosines_are_those_of_similarity(page, runs, folder):
    rows = all_rows(Similarity(SimilaritySettings(), runs, folder / "models" / "base"))["similarity"]
    [whole] = [row for row in rows if row["scope"] == "global" and row["run_a"] == "sft"]
    assert page["together"] == whole["cosine"]
    assert page["chance"] == whole["null_sd"]
    assert page["apart"] == whole["orthogonal_fraction"]
    assert abs(page["together"]) < 5 * page["chance"]


def test_the_permutation_test_goes_through_all_labelings(page):
    found = page["found"]
    assert found.draws is None
    assert found.labelings == 36
    assert found.p == pytest.approx(1 / 36, rel=1e-12), "only the true labels part runs as well"
    assert page["likeness"] == (found.within_mean, found.between_mean, found.p)
    assert found.within_mean > 0.8 > 0.3 > found.between_mean


def test_angles_are_those_of_subspaces(page, runs, folder):
    rows = all_rows(Subspaces(SubspaceSettings(k=4), runs, folder / "models" / "base"))["subspaces"]
    chosen = [row for row in rows if row["module"] == MATRIX and row["side"] == "left"]
    assert page["left"].tolist() == [row["angle_degrees"] for row in chosen]
    assert page["by_chance"].tolist() == [row["null_degrees"] for row in chosen]
    assert len(chosen) == 4


def test_a_run_that_goes_straight_has_straightness_1(page):
    way = page["way"]
    assert page["straight"] == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(way.norm / way.norm[-1], [1 / 4, 1 / 2, 1], rtol=1e-6)
    np.testing.assert_allclose(way.distance / way.norm[-1], [1 / 4, 1 / 4, 1 / 2], rtol=1e-6)


def test_the_path_and_its_barrier_are_those_of_paths(page, runs, folder, probe):
    made = all_rows(Paths(PathsSettings(include_base=False), runs, folder / "models" / "base", {"texts": probe}))
    assert page["path"].alphas.tolist() == [row["alpha"] for row in made["paths"]]
    assert page["path"].means.tolist() == [row["nll"] for row in made["paths"]]
    [row] = made["barriers"]
    found = page["height"]._asdict() | page["sure"].columns()
    assert found == {name: row[name] for name in found}
    assert page["rise"] == (row["chord"], (row["chord_low"], row["chord_high"]), row["chord_alpha"])


def test_curvature_is_that_of_curvature(page, runs, folder, probe):
    settings = CurvatureSettings(spaces=("delta",), path_points=0)
    place = runs[:1], folder / "models" / "base", probe
    rows = all_rows(ExtremeEigenvalues(settings, *place))["curvature"]
    eigenvalues = [row for row in rows if row["quantity"] == "eigenvalue"]
    # The study multiplies these vectors and the bottom one together, which rounds otherwise in fp64.
    assert sorted(page["top"], reverse=True) == pytest.approx([row["value"] for row in eigenvalues], rel=1e-12)
    assert sorted(page["errors"]) == pytest.approx(sorted(row["error"] for row in eigenvalues), rel=1e-6)
    assert len(eigenvalues) == 5
    [trace] = [row for row in rows if row["quantity"] == "trace"]
    assert page["trace"]._asdict() == {name: trace[name] for name in page["trace"]._fields}
    rows = all_rows(SpectralDensity(settings, *place))["curvature"]
    for index, (nodes, weights) in enumerate(page["spectrum"].probes):
        rule = [row for row in rows if row["quantity"] == "ritz" and row["index"] == index]
        assert nodes.tolist() == [row["x"] for row in rule]
        assert weights.tolist() == [row["value"] for row in rule]
    assert index == 3


def test_the_density_holds_all_eigenvalues_once(page):
    band, step = page["band"], page["grid"][1] - page["grid"][0]
    assert band.value.sum() * step == pytest.approx(1, abs=0.05)
    assert (band.low <= band.value).all()
    assert (band.value <= band.high).all()


def test_the_gauss_newton_matrix_is_asked_as_the_hessian_is(page):
    """It is positive semi-definite, so that power iteration finds its largest eigenvalue too."""
    ggn = GGN(page["model"], page["probe"].batches(), [page["name"]])
    vector = gaussian(ggn.n, 1, seed=0)
    for _ in range(60):
        vector = ggn.matmat(vector / vector.norm())
    assert page["first"] == pytest.approx(float(vector.norm()), rel=1e-2)


def test_an_operator_is_refused_once_its_weights_have_gone(page):
    with pytest.raises(WorkloadError, match="this hessian was made"):
        page["hessian"].matmat(torch.ones(page["hessian"].n, 1))


def test_alignments_are_those_of_cka(page, runs, folder, probe):
    settings = CKASettings(batch_size=4, treatments=("plain",))
    rows = all_rows(CKA(settings, runs, folder / "models" / "base", probe))["cka"]
    assert [vars(each) for each in page["alike"]] == [
        {"cka": row["cka"], "biased": row["cka_biased"], "low": row["low"], "high": row["high"]} for row in rows
    ]
    assert len(rows) == 3
    assert rows[-1]["low"] is not None


def test_the_base_has_its_own_weights_again(page, folder):
    base, _ = load_student(folder / "models" / "base")
    own = dict(page["model"].named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in base.named_parameters())


def test_the_page_uses_every_public_name(page):
    code = "".join(block[1] for block in blocks())
    for name in raygeo.geometry.__all__:
        assert page[name] is getattr(raygeo.geometry, name)
        assert len(re.findall(rf"\b{name}\b", code)) > 1, f"docs/notebook.md imports {name} and never uses it"


def test_every_public_name_says_what_it_takes_and_gives():
    for name in raygeo.geometry.__all__:
        assert len(inspect.getdoc(getattr(raygeo.geometry, name)).split()) > 20


def test_the_page_names_every_part_and_each_part_its_modules():
    parts = [part for part in pkgutil.iter_modules(raygeo.geometry.__path__) if part.ispkg]
    for part in parts:
        package = importlib.import_module(f"raygeo.geometry.{part.name}")
        assert f"`{part.name}." in PAGE.read_text()
        for module in pkgutil.iter_modules(package.__path__):
            assert f"``{module.name}``" in package.__doc__, f"{package.__name__} does not say what {module.name} is for"
    assert len(parts) == 4


def test_the_library_is_imported_without_ray_or_figures():
    heavy = ("ray", "matplotlib", "mlflow", "deepspeed")
    code = f"import sys, raygeo.geometry; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PAGE.parents[1], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_only_hub_ids_are_looked_up_on_the_hub(folder, tmp_path, monkeypatch):
    """No network: the cache is laid out as ``huggingface_hub`` does it, and that library looks models up in it."""
    for name in ("base", "sft", "dpo"):
        kept = tmp_path / f"models--someone--{name}"
        shutil.copytree(folder / "models" / name, kept / "snapshots" / "0123abcd")
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    sft, dpo = open_delta("someone/sft", "someone/base"), open_delta("someone/dpo")
    by_id = raygeo.geometry.cosine(sft, dpo)
    assert load_student("someone/base")[0].config.hidden_size == 32
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    by_folder = raygeo.geometry.cosine(open_delta("models/sft", "models/base"), open_delta("models/dpo"))
    assert by_id == by_folder
