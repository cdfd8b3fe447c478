"""A whole study of a tiny chat student on data as they are published: parallel lists, and preferences as messages."""

import json

import pytest
from chat_cases import save_tiny_chat
from study_cases import draw_rollouts, tiny_study

from raygeo.analyses.registry import analyses
from raygeo.data.probes import Probe
from raygeo.data.tokens import RolloutTokens
from raygeo.generation.renderer.conversation import is_conversation
from raygeo.models.loading import load_tokenizer
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.study import run_study

pytestmark = [pytest.mark.cluster, pytest.mark.long]

SYSTEM = "Show how, then the answer behind ####."


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A chat student, rollouts as OpenR1 has them, and preferences as TRL has them."""
    folder = tmp_path_factory.mktemp("data")
    rows = draw_rollouts(30, seed=3).to_pylist()
    prompts = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    with (folder / "lists.jsonl").open("w") as file:
        for samples in prompts[:20]:
            record = {
                "problem": samples[0]["prompt"], "answer": samples[0]["gold"], "source": "olympiads",
                "generations": [row["completion"] for row in samples],
                "correctness_math_verify": [row["correct"] for row in samples],
                "finish_reasons": ["length", "stop", "stop", None],
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    with (folder / "pairs.jsonl").open("w") as file:
        for samples in prompts[20:]:
            right = next((row for row in samples if row["correct"]), samples[0])
            asked = [{"role": "system", "content": "Short."}, {"role": "user", "content": right["prompt"]}]
            turns = [[{"role": "assistant", "content": text}] for text in (right["completion"], "#### none")]
            file.write(json.dumps({"prompt": asked, "chosen": turns[0], "rejected": turns[1]}) + "\n")
    texts = [(row["prompt"], row["completion"]) for row in rows]
    return folder, save_tiny_chat(folder / "student", texts=texts)


@pytest.fixture(scope="module")
def finished(ray_session, data):
    folder, student = data
    study = tiny_study(
        name="chat",
        store=str(folder / "store"),
        student={"model": str(student), "chat": {"system": SYSTEM}},
        rollouts={
            "read": [{"type": "jsonl", "path": str(folder / f"{name}.jsonl")} for name in ("lists", "pairs")],
            "heldout": 0.2,
        },
        training={"steps": 2, "batch_size": 4, "lr": 1e-3},
        runs=[{"loss": {"type": "sft"}}, {"loss": {"type": "dpo", "pairs_per_prompt": 1}}],
        evaluation={"answers": {"max_new_tokens": 8}},
        geometry={**dict.fromkeys(analyses()), "norms": {}},
    )
    return run_study(parse_study(study)), load_tokenizer(student)


def test_every_row_is_read_and_pairs_are_those_given(finished):
    store, _ = finished
    rows = store.table("rollouts").to_pylist()
    assert len(rows) == 20 * 4 + 10 * 2
    assert sum(row["truncated"] for row in rows) == 20
    assert sum(row["pair"] is not None for row in rows) == sum(is_conversation(row["prompt"]) for row in rows) == 20
    counts = {(row["stage"], row["name"]): row["value"] for row in store.table("counts").to_pylist()}
    trained = [row for row in rows if row["split"] == "train"]
    assert counts["dpo-lr0.001-s0", "given_pairs"] == sum(row["pair"] is not None for row in trained) / 2
    assert counts["sft-lr0.001-s0", "truncated_dropped"] == sum(row["truncated"] for row in trained)
    assert {row["status"] for row in store.table("runs").to_pylist()} == {"finished"}


def expected(row):
    """The text that a model reads and writes, in ChatML."""
    asked = json.loads(row["prompt"]) if row["pair"] else [
        {"role": "system", "content": SYSTEM}, {"role": "user", "content": row["prompt"]},
    ]  # fmt: skip
    read = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in asked)
    end = "" if row["truncated"] else "<|im_end|>"
    return f"<bos>{read}<|im_start|>assistant\n", f"{row['completion']}{end}"


def test_losses_see_the_assistants_tokens_behind_the_template(finished):
    store, tokenizer = finished
    rows = [row for row in store.table("rollouts").to_pylist() if row["split"] == "train"]
    [folder] = [store.stored("tokens", key) for key in store.folders("tokens")]
    tokens = RolloutTokens.open(folder)
    assert len(tokens) == len(rows)
    for place, row in enumerate(rows):
        ids, split = tokens[place].ids.tolist(), tokens[place].prompt_length
        assert (tokenizer.decode(ids[:split]), tokenizer.decode(ids[split:])) == expected(row)


def test_probes_are_put_as_rollouts_are(finished):
    store, tokenizer = finished
    heldout = {expected(row): row for row in store.table("rollouts").to_pylist() if row["split"] == "heldout"}
    read = {text for text, _ in heldout}
    for key in store.folders("probes"):
        for name in ("solutions", "answer"):
            path = store.path("probes", key, f"{name}.npz")
            for sequence in Probe.load(path).sequences if store.filesystem.get_file_info(path).is_file else ():
                split = sequence.prompt_length
                assert tokenizer.decode(sequence.ids[:split]) in read
                assert sequence.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_accuracy_is_measured_and_the_page_is_written(finished):
    store, _ = finished
    assert {row["run"] for row in store.table("accuracy").to_pylist()} == {"base", "sft-lr0.001-s0", "dpo-lr0.001-s0"}
    assert store.read_bytes("report.html")
