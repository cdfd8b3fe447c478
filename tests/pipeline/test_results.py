"""What ``raygeo.open`` gives of a store: tables, figures, verdict, and runs as models."""

import subprocess
import sys

import pytest
import torch
from run_cases import store_of_runs

import raygeo
from raygeo.errors import ConfigError, DeltaError, StoreError
from raygeo.models.delta import open_delta
from raygeo.models.loading import load_model
from raygeo.models.mix import applied

pytestmark = pytest.mark.cluster

IDS = torch.arange(3, 23).view(2, 10)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return store_of_runs(tmp_path_factory.mktemp("results") / "store")


@pytest.fixture(scope="module")
def results(store):
    return raygeo.open(store.location)


@torch.no_grad()
def logits_of(model):
    return model.eval()(IDS).logits


@torch.no_grad()
def logits_by_hand(store, name):
    with applied(load_model(store.folder("students", "base")), open_delta(store.folder("deltas", name))) as model:
        return model(IDS).logits


def test_tables_are_arrow_and_read_by_name(results):
    assert results.tables["runs"]["run"].to_pylist() == ["lora", "full", "lost"]
    assert results.table("accuracy").to_pandas().accuracy.tolist() == [0.5, 0.5]
    assert "rollouts" in results.tables
    assert "similarity" not in results.tables
    assert results.table("similarity").num_rows == 0
    with pytest.raises(KeyError):
        results.tables["nothing"]
    with pytest.raises(StoreError, match="there is no table 'nothing'"):
        results.table("nothing")


def test_a_run_has_its_record_its_accuracy_and_its_metrics(results):
    assert list(results.runs) == ["lora", "full", "lost"]
    run = results.run("lora")
    assert (run.record.label, run.record.steps, run.record.status) == ("sft", 4, "finished")
    assert run.accuracy["heldout"]["correct"] == 1
    assert run.metrics["eval/heldout/accuracy"] == 0.5
    assert results.run("lost").record.reason == "NaN"
    assert results.run("base").accuracy["heldout"]["accuracy"] == 0.5
    with pytest.raises(ConfigError, match="no run 'lorra'; did you mean 'lora'"):
        results.run("lorra")


def test_nothing_that_is_read_imports_ray(store):
    read = """
import sys, raygeo
results = raygeo.open(sys.argv[1])
results.verdict, results.figures, results.tables["runs"], [run.metrics for run in results.runs.values()]
results.run("lora").adapter(), results.run("full").model(), results.run("base").tokenizer()
print([name for name in ("ray", "deepspeed", "mlflow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", read, store.location], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done.stderr


def test_an_adapter_is_the_base_with_what_training_added(results, store):
    adapter = results.run("lora").adapter()
    assert type(adapter).__name__ == "PeftModelForCausalLM"
    torch.testing.assert_close(logits_of(adapter), logits_by_hand(store, "key-lora"), rtol=0, atol=1e-5)
    assert results.run("lora").tokenizer().vocab_size > 0
    assert not torch.allclose(logits_of(adapter), logits_of(results.run("base").model()), atol=1e-3)


def test_a_model_is_base_and_delta_added(results, store):
    for name in ("lora", "full"):
        torch.testing.assert_close(logits_of(results.run(name).model()), logits_by_hand(store, f"key-{name}"))
    base = load_model(store.folder("students", "base"))
    torch.testing.assert_close(logits_of(results.run("base").model()), logits_of(base))
    assert list(results.run("full").delta()) == ["model.norm.weight"]


def test_what_is_no_adapter_or_no_model_is_refused(results):
    with pytest.raises(DeltaError, match="trained all weights, so there is no adapter of it; model"):
        results.run("full").adapter()
    with pytest.raises(ConfigError, match="diverged"):
        results.run("lost").model()


def test_a_figure_of_empty_tables_is_refused(results):
    with pytest.raises(ConfigError, match="nothing to draw"):
        results.figure("cosine")
