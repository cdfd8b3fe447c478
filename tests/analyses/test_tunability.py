import json

import numpy as np
import pytest
import torch
from connectivity_cases import compute_all, noise, save_probe, save_run, save_student
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM
from view_cases import finished, row_of, sheet_of, view_of

from raygeo.analyses.inputs import AnalysisInputs
from raygeo.analyses.tunability import report
from raygeo.analyses.tunability.workload import Tunability, TunabilitySettings
from raygeo.data.probes import Probe
from raygeo.errors import DataError, StudentError
from raygeo.generation.renderer import ChatSettings, PlainRenderer
from raygeo.models.loading import load_tokenizer
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

SETTINGS = {"steps": 5, "lr": 3e-3, "batch_size": 3, "micro_batch_size": 2, "bootstrap": 100}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def probe_file(tmp_path):
    return save_probe(tmp_path / "texts.npz")


@pytest.fixture
def runs(student, tmp_path):
    return [Run(BASE, "key-base", None), save_run(tmp_path, "r1", noise(student, 1))]


def plain(student):
    return PlainRenderer(load_tokenizer(student))


def nll(model, text):
    """Summed over the completion of one text, through the model's own logits."""
    ids = torch.from_numpy(text.ids)[None]
    logits = model(ids).logits[0, text.prompt_length - 1 : -1]
    return cross_entropy(logits.double(), ids[0, text.prompt_length :], reduction="sum")


def plainly_tuned(student, delta, texts, rank, seed=0):
    """A loop of its own: whole batches, one text at a time, clipped by hand."""
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    with torch.no_grad():
        for name, change in delta.items():
            model.get_parameter(name).add_(change)
    if rank is not None:
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config).eval()
    train, measured = texts[0::2], texts[1::2]
    before = [nll(model, text).item() for text in measured]
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0)
    rng = np.random.default_rng(seed)
    order = [i for _ in range(5) for i in np.array_split(rng.permutation(len(train)), range(3, len(train), 3))][:5]
    for rows in order:
        chosen = [train[i] for i in rows]
        loss = sum(nll(model, text) for text in chosen) / sum(text.completion_length for text in chosen)
        adam.zero_grad()
        loss.backward()
        size = torch.sqrt(sum((p.grad**2).sum() for p in trained if p.grad is not None))
        for p in trained:
            if p.grad is not None and size > 1:
                p.grad /= size
        adam.step()
    return before, [nll(model, text).item() for text in measured]


@pytest.mark.parametrize("rank", [None, 2])
def test_tuning_is_that_of_a_plain_loop_and_weights_are_put_back(student, runs, probe_file, rank):
    texts = Probe.load(probe_file).sequences
    workload = Tunability(TunabilitySettings(**SETTINGS, rank=rank), runs, student, probe_file, plain(student))
    rows = {row["run"]: row for row in compute_all(workload)["tuned"]}
    for run, delta in ((BASE, {}), ("r1", noise(student, 1))):
        before, after = plainly_tuned(student, delta, texts, rank)
        np.testing.assert_allclose(rows[run]["before"], before, rtol=1e-5)
        np.testing.assert_allclose(rows[run]["after"], after, rtol=1e-4)
        assert np.abs(np.subtract(after, before)).max() > 0.2
    assert rows[BASE]["text_tokens"] == [text.completion_length for text in texts[1::2]]


def test_checkpointing_and_small_micro_batches_change_nothing(student, runs, probe_file):
    def after(**options):
        settings = TunabilitySettings(**SETTINGS | options, rank=2)
        return compute_all(Tunability(settings, runs, student, probe_file, plain(student)), 1)["tuned"][0]["after"]

    np.testing.assert_allclose(after(micro_batch_size=1, gradient_checkpointing=True), after(), rtol=1e-4)


def test_runs_are_held_against_the_tuned_base_over_seeds(student, runs, probe_file):
    settings = TunabilitySettings(**SETTINGS, rank=2, seeds=(0, 1))
    workload = Tunability(settings, runs, student, probe_file, plain(student))
    tuned = compute_all(workload)["tuned"]
    assert len(tuned) == 4
    found = workload.aggregate({"tuned": to_arrow("tuned", tuned, workload.tables["tuned"])})["tunability"]
    base, run = found
    tokens = sum(tuned[0]["text_tokens"])
    after = {row["run"]: [sum(t["after"]) / tokens for t in tuned if t["run"] == row["run"]] for row in tuned}
    assert run["after"] == pytest.approx(np.mean(after["r1"]))
    assert run["seed_sd"] == pytest.approx(np.std(after["r1"], ddof=1))
    assert run["over_base"] == pytest.approx(np.mean(after[BASE]) - np.mean(after["r1"]))
    assert run["gain"] == pytest.approx(run["before"] - run["after"])
    assert {row["texts"] for row in found} == {"solutions"}
    assert base["over_base"] == base["over_base_low"] == base["over_base_high"] == 0


def test_new_data_is_read_and_refused(student, runs, probe_file, tmp_path):
    lines = [{"prompt": "a b ?", "completion": "#### 7"}, {"prompt": "c ?", "completion": "d #### 8"}] * 2
    file = tmp_path / "new.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    settings = TunabilitySettings(**SETTINGS, rank=2, pairs=str(file))
    [row] = compute_all(Tunability(settings, runs[:1], student, probe_file, plain(student)), 0)["tuned"]
    assert row["text_tokens"] == [4, 4]
    assert row["last_loss"] < row["first_loss"]
    chat = PlainRenderer(load_tokenizer(student))
    chat.identity = "chat"
    keys = [Tunability(settings, runs, student, probe_file, each).tasks()[0].key for each in (plain(student), chat)]
    assert keys[0] != keys[1], "the same text is not the same tokens"
    file.write_text('{"prompt": "a"}')
    with pytest.raises(DataError, match=r"new.jsonl, line 1: no text 'prompt' and 'completion'"):
        Tunability(settings, runs, student, probe_file, plain(student))


def test_without_an_exam_texts_are_put_as_the_comparison_asks(student):
    given = AnalysisInputs(student, [], "", {}, {}.__getitem__, dict)
    assert given.renderer.identity == plain(student).identity
    asked = AnalysisInputs(student, [], "", {}, {}.__getitem__, dict, chat=ChatSettings(template="chat"))
    with pytest.raises(StudentError, match="asks for a chat template"):
        _ = asked.renderer


def test_tunability_is_higher_where_the_run_is_a_better_start():
    ends = {"before": 1.0, "gain": 0.3}
    rows = [ends | {"run": run, "after": 0.7, "over_base": over} for run, over in ((BASE, 0.0), ("sft", 0.2))]
    rows = [row | {"texts": "solutions", "steps": 20, "seeds": 1, "n": 64, "tokens": 900} for row in rows]
    view = view_of(runs=finished("sft"), tunability=rows)
    assert ("sft", "tunability", 0.2) in list(report.metrics(view))
    assert row_of(sheet_of(report.tuned, view), BASE)["below the tuned base"] == "–"
    own, said = report.recipe(view)
    assert "of the task that runs were trained on" in own
    assert "after 20 steps" in said
    assert "one from each run" in said
    assert "the spread over seeds says" in report.recipe(view_of(tunability=[row | {"seeds": 2} for row in rows]))[1]
    assert not report.on_new_data(view)
    new = view_of(runs=finished("sft"), tunability=[row | {"texts": "pairs"} for row in rows])
    assert report.on_new_data(new)
    assert len(report.recipe(new)) == 1
