import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from delta_cases import differences
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from study_cases import draw_rollouts
from tiny import save_model, save_tiny_student, tiny_peft, tiny_qwen
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.cluster.execution import in_process
from raygeo.errors import ConfigError, DataError, DeltaError, StudentError
from raygeo.pipeline.compare import NOT_ASKED, SAID_OF_SOME, UNKNOWN, compare_models
from raygeo.pipeline.comparison import load_comparison, name_models, plan_comparison
from raygeo.pipeline.config import load_study
from raygeo.pipeline.published import finished_run
from raygeo.store import Store

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Workloads run here instead of on actors, which cost seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raygeo.pipeline.compare.connect", lambda address: None)
        patch.setattr("raygeo.pipeline.compare.check_fits", lambda *asked: None)
        patch.setattr("raygeo.pipeline.compare.check_nodes", lambda *asked, **also: None)
        patch.setattr("raygeo.pipeline.compare.ActorPool", lambda *settings: nullcontext(in_process))
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, two complete fine-tunes in shards and two adapters of it."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "base")
    save_model(folder / "full", seed=1)
    save_model(folder / "half", seed=2, dtype=torch.bfloat16)
    for seed, name in enumerate(("one", "two")):
        tiny_peft(seed=seed).save_pretrained(folder / name)
        config = folder / name / "adapter_config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(folder / "base")})
        )
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def flat(tensors):
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def merged(adapter, base):
    """The adapter's delta by PEFT itself, zero where it has none."""
    from peft import PeftModel

    layers = PeftModel.from_pretrained(tiny_qwen(), adapter).base_model.model
    zeros = {name: torch.zeros_like(p) for name, p in tiny_qwen().named_parameters()}
    moved = {
        f"{name}.weight": module.get_delta_weight("default")
        for name, module in layers.named_modules()
        if hasattr(module, "lora_A")
    }
    return zeros | moved


@pytest.fixture(scope="module")
def compared(models, tmp_path_factory):
    store = tmp_path_factory.mktemp("compared") / "store"
    names = ("full", "half", "one", "two")
    run(models / "base", *(models / name for name in names), "--store", store, "--reference", "one")
    return Store(str(store), create=False)


def test_cosines_and_norms_are_those_of_the_weights_themselves(compared, models):
    vectors = {name: flat(differences(models / name, models / "base")) for name in ("full", "half")}
    vectors |= {name: flat(merged(models / name, models / "base")) for name in ("one", "two")}
    rows = [row for row in compared.table("similarity").to_pylist() if row["scope"] == "global"]
    assert len(rows) == 12
    for row in rows:
        expected = torch.nn.functional.cosine_similarity(vectors[row["run_a"]], vectors[row["run_b"]], dim=0)
        assert row["cosine"] == pytest.approx(expected.item(), abs=1e-7)
    norms = {row["run"]: row["norm"] for row in compared.table("deltas").to_pylist() if row["scope"] == "global"}
    for row in compared.table("runs").to_pylist():
        assert norms[row["run"]] == pytest.approx(vectors[row["run"]].norm().item(), rel=1e-6)
        assert row["loss"] is row["lr"] is row["seed"] is None


def test_the_page_says_what_is_not_known(compared):
    page = compared.read_bytes("report.html").decode()
    assert UNKNOWN in page
    assert NOT_ASKED in page
    assert "Every run against one" in page
    for claim in ("trained with each loss", "one seed only", "A loss has one colour", ">lr<", ">None<", ">nan<"):
        assert claim not in page
    assert "half is stored as BF16" in page
    assert "full is stored as" not in page


def test_a_model_that_was_compared_is_no_run_to_start_from(compared, models):
    with pytest.raises(ConfigError, match=f"was compared there and not trained; what it is lies at {models}/one"):
        finished_run(compared, "one", "run 'one'")


@pytest.mark.usefixtures("no_figures")
def test_a_second_call_takes_everything_from_the_store(compared, models, monkeypatch):
    from raygeo.pipeline.context import StageContext

    made = []
    original = StageContext.count
    monkeypatch.setattr(StageContext, "count", lambda bench, new, old: made.append(new) or original(bench, new, old))
    before = {name: compared.table(name) for name in ("similarity", "deltas", "subspaces")}
    names = ("full", "half", "one", "two")
    run(models / "base", *(models / name for name in names), "--store", compared.location, "--reference", "one")
    assert sum(made) == 0
    assert all(compared.table(name) == table for name, table in before.items())
    page = compared.read_bytes("report.html")
    CliRunner().invoke(app, ["report", compared.location])
    assert compared.read_bytes("report.html") == page


@pytest.mark.usefixtures("no_figures")
def test_a_file_says_how_models_were_trained(models, tmp_path):
    """Two seeds of one loss are its noise floor, beside which the cosine of two losses stands."""
    trained = {"loss": "sft", "lr": 1e-5, "seed": 0, "init_seed": 7}
    said = {
        "base": str(models / "base"),
        "models": [
            {"name": "first", "model": str(models / "one"), "trained": trained},
            {"name": "second", "model": str(models / "two"), "trained": trained | {"seed": 1}},
            {"name": "preferred", "model": str(models / "full"), "trained": trained | {"loss": "dpo"}},
            {"name": "found", "model": str(models / "half")},
        ],
        "geometry": {"subspaces": None, "off_principal": None},
    }
    file = tmp_path / "models.yaml"
    file.write_text(yaml.safe_dump(said))
    store = tmp_path / "store"
    run(file, "--store", store, "--reference", "second")
    opened = Store(str(store))
    page = opened.read_bytes("report.html").decode()
    assert UNKNOWN not in page
    assert "How first, second, preferred were trained is what the file of the comparison says" in page
    assert SAID_OF_SOME in page
    runs = {row["run"]: row for row in opened.table("runs").to_pylist()}
    assert [runs["preferred"][name] for name in ("loss", "lr", "seed", "init_seed")] == ["dpo", 1e-5, 0, 7]
    assert runs["found"]["loss"] is None
    pairs = {(row["run_a"], row["run_b"]): row for row in opened.table("cosine_baselines").to_pylist()}
    assert pairs["first", "second"]["same_loss"]
    assert pairs["first", "second"]["seeds"] == "order"
    assert not pairs["first", "preferred"]["same_loss"]
    floors = [row for row in opened.table("noise_floors").to_pylist() if row["seeds"] == "order" and row["n"]]
    mine = [row for row in floors if row["configuration_a"] == row["configuration_b"] == "first"]
    assert [row["mean"] for row in mine] == [pytest.approx(pairs["first", "second"]["cosine"])]


def test_the_shipped_comparison_is_valid():
    file = Path(__file__).parents[1] / "raygeo" / "studies" / "adapters.yaml"
    comparison = load_comparison(str(file), solutions="texts.jsonl")
    assert len(comparison.described) == len(comparison.models)
    assert comparison.reference == "sft"
    with pytest.raises(ConfigError, match=r"holds a comparison; run it by raygeo compare"):
        load_study(file)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"models": []}, "models"),
        ({"models": [{"name": "a", "model": "a", "trained": {"loss": "sft"}}]}, "models.0.trained.lr"),
        ({"model": "a"}, "did you mean 'models'"),
    ],
)
def test_a_file_that_is_wrong_is_refused(changed, said, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text(yaml.safe_dump({"base": "b", "models": [{"name": "a", "model": "a"}]} | changed))
    with pytest.raises(ConfigError, match=said):
        load_comparison(str(file))


@pytest.mark.usefixtures("no_figures")
def test_models_are_compared_on_solutions_too(tmp_path):
    base = save_tiny_student(tmp_path / "base")
    other = save_tiny_student(tmp_path / "other", seed=1)
    lines = draw_rollouts(6, samples=1).select(["prompt", "completion"]).to_pylist()
    file = tmp_path / "solutions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = ["points=3", "bootstrap=100"]
    options = [f"--set=geometry.paths.{option}" for option in small]
    options += ["--set=geometry.curvature=null", "--set=geometry.cka.batch_size=4", "--set=geometry.subspaces=null"]
    store = tmp_path / "store"
    run(base, other, "--store", store, "--solutions", file, *options)
    made = Store(store)
    paths = {(row["run_a"], row["run_b"], row["alpha"]): row["nll"] for row in made.table("paths").to_pylist()}
    assert set(paths) == {("base", "other", alpha) for alpha in (0.0, 0.5, 1.0)}
    assert {row["n"] for row in made.table("cka").to_pylist()} == {6}
    # At the far end of the path stands the other model itself.
    (own,) = expected_losses(other, lines)
    assert paths["base", "other", 1.0] == pytest.approx(own, rel=1e-5)
    run(base, other, "--store", store)
    assert made.table("paths").num_rows == 0


def expected_losses(folder, lines):
    from raygeo.generation.renderer import PlainRenderer
    from raygeo.models.loading import load_student

    model, tokenizer = load_student(folder)
    total, tokens = 0.0, 0
    for line in lines:
        sequence = PlainRenderer(tokenizer).encode(line["prompt"], line["completion"])
        ids = torch.from_numpy(sequence.ids)
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        chosen = logprobs[torch.arange(len(ids) - 1), ids[1:]][sequence.prompt_length - 1 :]
        total, tokens = total - chosen.sum().item(), tokens + len(chosen)
    return [total / tokens]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["x/a", "x/b"], ["a", "b"]),
        (["one/last", "two/last"], ["one-last", "two-last"]),
        (["r/one/last/", "r/two/last", "r/two/first"], ["one-last", "two-last", "two-first"]),
        (["org/name"], ["name"]),
    ],
)
def test_models_are_named_after_what_tells_them_apart(models, names):
    assert name_models(models) == names


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        (["a", "a/"], {}, "a is given 2 times"),
        (["a", "b"], {"names": ["x"]}, "2 models and 1 name;"),
        (["a", "b"], {"names": ["x", "x"]}, "x names more than one model"),
        (["a", "r/base"], {}, "cannot be named 'base'"),
        (["a", "b"], {"reference": "c"}, "'c' is none of a, b"),
        (["a"], {"overrides": ["geometry.paths.points=5"]}, "geometry.paths is measured on texts"),
        (["a"], {"overrides": ["geometry.subspaces.kk=5"]}, "did you mean 'k'"),
    ],
)
def test_what_is_asked_wrongly_is_refused(models, options, said):
    with pytest.raises(ConfigError, match=said):
        plan_comparison("base", models, **options)


@pytest.fixture
def odd(models, tmp_path):
    """Change a copy of a model and compare it."""

    def compare(name, change, base="base"):
        folder = shutil.copytree(models / name, tmp_path / "odd")
        change(folder)
        compare_models(plan_comparison(str(models / base), [str(folder)], store=str(tmp_path / "store")))

    return compare


def named(base):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))

    return change


def test_an_adapter_of_another_base_is_refused(odd, models, tmp_path):
    with pytest.raises(DeltaError, match=r"odd was trained from .*full, whose weights are not those of"):
        odd("one", named(models / "full"))


def test_an_adapter_that_does_not_fit_is_refused(models, tmp_path):
    wide = save_tiny_student(tmp_path / "wide")
    (tmp_path / "wide" / "model.safetensors").unlink()
    tiny_qwen(48, hidden_size=40).save_pretrained(wide)
    with pytest.raises(DeltaError, match=r"one: the delta of .* has shape"):
        compare_models(plan_comparison(str(wide), [str(models / "one")], store=str(tmp_path / "store")))


def test_folders_that_are_no_model_are_refused(odd, tmp_path):
    with pytest.raises(DeltaError, match=r"odd: .* is not a delta"):
        odd("one", lambda folder: (folder / "adapter_model.safetensors").unlink())
    assert not (tmp_path / "store").exists(), "told before anything is begun"
    for model, said in (("./nowhere", "neither a folder nor a hub id"), ("nowhere", "neither a folder nor a hub id")):
        with pytest.raises(StudentError, match=said):
            compare_models(plan_comparison(model, [model], store=str(tmp_path / "store")))


def test_models_that_are_wrong_are_named_before_anything_is_written(models, tmp_path):
    store = str(tmp_path / "store")
    with pytest.raises(StudentError, match=r"raygeo compare BASE MODEL.*is a PEFT adapter of .*/base.*give its base"):
        compare_models(plan_comparison(str(models / "one"), [str(models / "full")], store=store))
    with pytest.raises(StudentError, match="neither a folder nor a hub id"):
        compare_models(plan_comparison(str(models / "base"), [str(models / "three")], store=store))
    assert not Path(store).exists()


def test_a_store_that_holds_a_study_is_left_alone(models, store):
    store.write_bytes("study.yaml", b"name: x")
    with pytest.raises(ConfigError, match="holds a study"):
        compare_models(plan_comparison(str(models / "base"), [str(models / "one")], store=store.location))


def test_hub_ids_are_found_where_the_hub_keeps_what_it_fetched(models, tmp_path, monkeypatch):
    """No network: the cache is laid out as ``huggingface_hub`` does it, and that library looks models up in it."""
    for name in ("base", "full"):
        kept = tmp_path / "hub" / f"models--someone--{name}"
        shutil.copytree(models / name, kept / "snapshots" / "0123abcd")
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run("someone/base", "someone/full", models / "half", "--store", tmp_path / "hub-ids")
    run(models / "base", models / "full", models / "half", "--store", tmp_path / "folders")
    by_id, by_folder = (
        Store(str(tmp_path / name), create=False).table("similarity") for name in ("hub-ids", "folders")
    )
    assert by_id.num_rows > 0
    assert by_id.equals(by_folder)


def test_solutions_that_cannot_be_used_are_named(tmp_path):
    base = save_tiny_student(tmp_path / "base")
    file = tmp_path / "solutions.jsonl"
    for lines, said in (
        ('{"prompt": "1 2"}', r"solutions\.jsonl:1 missing field 'completion'"),
        ('{"prompt": "1 2", "completion": "2", "truncated": true}', "cut off"),
        ("", "holds no solution"),
        (json.dumps({"prompt": "1 2", "completion": "1 " * 200}), "solution 1 has 20. tokens"),
    ):
        file.write_text(lines)
        comparison = plan_comparison(
            str(base), [str(base)], names=["same"], store=str(tmp_path / "store"), solutions=str(file),
            overrides=[
                "geometry.norms=null", "geometry.curvature=null", "geometry.cka=null",
            ],
        )  # fmt: skip
        with pytest.raises(DataError, match=said):
            compare_models(comparison)
        assert (tmp_path / "store").exists() == ("tokens" in said), "what needs no model is told before any work"


@pytest.mark.parametrize(("name", "file"), [("one", "adapter_model.safetensors"), ("half", None)])
def test_weights_that_are_not_finite_are_refused_by_name(odd, name, file):
    def spoil(folder):
        path = folder / file if file else next(f for f in folder.glob("model-*.safetensors") if has_query(f))
        tensors = load_file(path)
        key = next(key for key in sorted(tensors) if "layers.1.self_attn.q_proj" in key)
        tensors[key][0, 0] = torch.nan
        save_file(tensors, path, metadata={"format": "pt"})

    def has_query(path):
        return any("layers.1.self_attn.q_proj" in key for key in load_file(path))

    with pytest.raises(DeltaError, match=r"odd: model\.layers\.1\.self_attn\.q_proj\.weight holds NaN or infinity in"):
        odd(name, spoil)


def test_weights_that_an_adapter_brings_must_be_those_of_the_base(tmp_path):
    """PEFT stores the base layer of an adapted head beside the factors."""
    model = tiny_qwen(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "base")
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with torch.no_grad():
        for name, value in peft.named_parameters():
            if "lora_B" in name:
                value.fill_(0.1)
    peft.save_pretrained(tmp_path / "odd")
    file = tmp_path / "odd" / "adapter_model.safetensors"
    tensors = load_file(file)
    [carried] = [key for key in tensors if key.endswith("lm_head.base_layer.weight")]
    plan = plan_comparison(str(tmp_path / "base"), [str(tmp_path / "odd")], store=str(tmp_path / "store"))
    store = compare_models(plan)
    assert {r["module"] for r in store.table("deltas").to_pylist() if r["scope"] == "module"} >= {"lm_head"}
    save_file(tensors | {carried: tensors[carried] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(DeltaError, match=r"brings weights of its own for lm_head\.weight, which are not those of"):
        compare_models(plan)


def test_a_comparison_that_is_refused_leaves_what_an_earlier_one_stored(models, tmp_path, no_figures):
    store = str(tmp_path / "store")
    compare_models(plan_comparison(str(models / "base"), [str(models / "one")], store=store))
    [kept] = Store(store).folders("deltas")
    wide = save_tiny_student(tmp_path / "wide")
    (tmp_path / "wide" / "model.safetensors").unlink()
    tiny_qwen(48, hidden_size=40).save_pretrained(wide)
    with pytest.raises(DeltaError, match="has shape"):
        compare_models(plan_comparison(str(wide), [str(models / "one"), str(models / "two")], store=store))
    assert Store(store).folders("deltas") == [kept]
    assert Store(store).has_folder("deltas", kept)
