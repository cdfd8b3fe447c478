import json
import shlex

import pytest
import torch
import yaml
from chat_cases import save_tiny_chat
from peft import PeftModel
from run_cases import store_of_runs
from study_cases import draw_rollouts, tiny_study
from transformers import AutoModelForCausalLM, AutoTokenizer

from raygeo.errors import ConfigError
from raygeo.evaluation.harness import process_results
from raygeo.generation.renderer import renderer_for
from raygeo.models.loading import load_model, load_tokenizer
from raygeo.models.lora import LoraSettings, attach_lora
from raygeo.models.mix import applied
from raygeo.models.run import Run
from raygeo.pipeline.config import parse_study, study_yaml
from raygeo.pipeline.export import export_run
from raygeo.store import Store

pytestmark = pytest.mark.cluster

IDS = torch.arange(3, 23).view(2, 10)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A finished study of a LoRA run and a full one, with answers to held-out problems and to two missing ones."""
    return store_of_runs(tmp_path_factory.mktemp("export") / "store")


def logits_of_run(store, name):
    delta = Run(name, "k", store.folder("deltas", f"key-{name}")).open()
    with torch.no_grad(), applied(load_model(store.folder("students", "base")), delta) as model:
        return model(IDS).logits


def test_an_adapter_loads_with_peft_and_gives_the_logits_of_the_run(store, tmp_path):
    exported = export_run(store, "lora", tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(store.folder("students", "base"), dtype=torch.float32)
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, exported.folder).eval()(IDS).logits
    torch.testing.assert_close(found, logits_of_run(store, "lora"), rtol=0, atol=1e-5)
    config = json.loads((exported.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == store.folder("students", "base")
    assert AutoTokenizer.from_pretrained(exported.folder)("how many").input_ids


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_merged_model_loads_with_transformers_and_gives_the_logits_of_the_run(store, tmp_path, name):
    exported = export_run(store, name, tmp_path / "out", merged=True)
    model = AutoModelForCausalLM.from_pretrained(exported.folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, logits_of_run(store, name), rtol=0, atol=1e-5)
    assert "Its accuracy was not measured." in (exported.folder / "README.md").read_text() or name == "lora"


def test_the_card_says_what_it_is_and_how_to_measure_it_again(store, tmp_path):
    exported = export_run(store, "lora", tmp_path / "out")
    card = (exported.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {
        "base_model": store.folder("students", "base"), "library_name": "peft", "tags": ["raygeo", "sft"]
    }  # fmt: skip
    assert "`key-lora`" in card
    assert "| `lr` | 0.001 |" in card
    assert "| heldout | 2 | 1 | 50.0 [10.0, 90.0] | 50.0 [10.0, 90.0] |" in card
    assert f"pretrained={store.folder('students', 'base')},peft={exported.folder}" in card
    assert "--tasks raygeo_heldout " in card
    [lacking] = exported.missing
    assert lacking.startswith("benchmark gone: ")


def test_tasks_ask_and_judge_as_the_study_did(store, tmp_path):
    exported = export_run(store, "lora", tmp_path / "out")
    folder = exported.folder / "lm_eval"
    problems = [json.loads(line) for line in (folder / "raygeo_heldout.jsonl").read_text().splitlines()]
    known = {row["prompt"]: row["gold"] for row in draw_rollouts(3, samples=2).to_pylist()}
    assert [(p["prompt"], p["gold"]) for p in problems] == [list(known.items())[i] for i in (0, 2)]
    assert "process_results: !function raygeo_grading.process_results" in (folder / "raygeo_heldout.yaml").read_text()
    [first, _] = problems
    right, wrong = (f"#### {number}" for number in (first["gold"], (int(first["gold"]) + 1) % 100))
    for text, accuracy in ((right, 1.0), (wrong, 0.0), ("? " * 40 + right, 0.0)):
        assert process_results(first, [text]) == {"accuracy": accuracy}


@pytest.mark.parametrize("merged", [False, True])
def test_a_chat_model_stops_where_the_study_stopped(store, tmp_path, merged):
    """Of a base whose own settings end at the end of texts, where its turns, and the study's answers, end otherwise."""
    chat = Store(tmp_path / "store")
    base = save_tiny_chat(tmp_path / "base")
    settings = {"eos_token_id": load_tokenizer(base).eos_token_id, "top_k": 20}
    (base / "generation_config.json").write_text(json.dumps(settings))
    chat.save_folder("students", "base", base)
    folder = chat.scratch()
    attach_lora(load_model(chat.folder("students", "base")), LoraSettings(r=2), 0).save_pretrained(folder)
    chat.save_folder("deltas", "key-lora", folder)
    for table in ("runs", "rollouts", "counts", "answers", "accuracy"):
        chat.publish_rows(table, store.table(table))
    chat.write_bytes(
        "study.yaml",
        study_yaml(
            parse_study(
                tiny_study(
                    student={
                        "dtype": "bf16", "model": "builtin:word-problems",
                        "chat": {"template_kwargs": {"enable_thinking": False}},
                    }
                )
            )
        ).encode(),
    )  # fmt: skip
    exported = export_run(chat, "lora", tmp_path / "my out", merged=merged)
    renderer = renderer_for(load_tokenizer(chat.folder("students", "base")))
    written = json.loads((exported.folder / "generation_config.json").read_text())
    ends = written["eos_token_id"]
    assert ends == list(renderer.stop_ids)
    assert written["top_k"] == 20
    assert renderer.tokenizer.eos_token_id in ends[1:]
    assert renderer_for(load_tokenizer(exported.folder)).stop_ids == renderer.stop_ids
    task = (exported.folder / "lm_eval" / "raygeo_heldout.yaml").read_text()
    until = yaml.safe_load(task.partition("process_results")[0])["generation_kwargs"]["until"]
    assert set(until) == set(renderer.tokenizer.convert_ids_to_tokens(ends))
    command = (exported.folder / "README.md").read_text().partition("```sh\n")[2].partition("```")[0]
    asked = shlex.split(command.replace("\\\n", ""))
    given = asked[asked.index("--model_args") + 1]
    assert given.endswith(",dtype=bfloat16,chat_template_args={'enable_thinking': False}")
    assert asked[asked.index("--include_path") + 1] == str(exported.folder / "lm_eval")


def test_what_cannot_be_exported_is_refused(store, tmp_path):
    with pytest.raises(ConfigError, match="give --merged"):
        export_run(store, "full", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"run 'lost' .* no weights .* diverged, NaN"):
        export_run(store, "lost", tmp_path / "out")
    with pytest.raises(ConfigError, match="did you mean 'lora'"):
        export_run(store, "lor", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ConfigError, match="already holds something"):
        export_run(store, "lora", tmp_path / "out")
    for place in ("file", "file/below"):
        with pytest.raises(ConfigError, match=r"file(/below)? cannot be written: .*file is a file"):
            export_run(store, "lora", tmp_path / "out" / place)
    with pytest.raises(ConfigError, match="/proc/self/here cannot be written"):
        export_run(store, "lora", "/proc/self/here")
