"""Where a completion ends: at the tokenizer's end-of-text or at whatever else the model's generation settings name."""

import json

import pytest
import torch
from transformers import GenerationConfig

from raygeo.data.readers import Prompt
from raygeo.data.sampling import DecodingSettings, Sampling
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.loading import load_student, load_tokenizer
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.pretrain import PretrainSettings, pretrain
from raygeo.toy.word_problems import word_tokenizer

SHAPE = Architecture(hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate=48, context=32, tied=False)
TURN = "<end_of_turn>"
PROMPT, ANSWER = "Ivy has 10 pens .", "10 + 2 = 12"


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A model taught to end its turns with a token of their own, whose tokenizer ends texts with another."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN]})
    tokenizer.stop_ids = (tokenizer.convert_tokens_to_ids(TURN),)
    model = build_model(SHAPE, tokenizer, 0)
    pretrain(model, tokenizer, [(PROMPT, f"{ANSWER}{TURN}")], PretrainSettings(steps=40, batch_size=4, warmup_steps=0))
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, *tokenizer.stop_ids])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def generate(model, tokenizer, **how):
    (completions,) = LocalEngine(model, PlainRenderer(tokenizer)).generate(Request([PROMPT], max_new_tokens=12, **how))
    return completions


def test_an_answer_ends_at_the_end_of_a_turn(chat):
    model, tokenizer = load_student(chat)
    (completion,) = generate(model, tokenizer)
    assert completion.text == ANSWER
    assert not completion.truncated
    assert completion.tokens == len(tokenizer(ANSWER, add_special_tokens=False).input_ids) + 1


def test_a_model_in_memory_ends_where_its_own_settings_say(chat):
    model, _ = load_student(chat)
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN]})
    (completion,) = generate(model, tokenizer)
    assert (completion.text, completion.truncated) == (ANSWER, False)


def test_draws_keep_their_own_end_and_its_logprob(chat, store):
    """A rollout carries the end of a turn for a student that ends turns with it, and for no other."""
    model, tokenizer = load_student(chat)
    drawn = generate(model, tokenizer, samples=4, temperature=1.0)
    ended = [completion for completion in drawn if completion.text == ANSWER and not completion.truncated]
    assert ended
    sequence = PlainRenderer(tokenizer).encode(PROMPT, ANSWER + TURN)
    with torch.no_grad():
        logits = model(torch.from_numpy(sequence.ids)[None]).logits[0, sequence.prompt_length - 1 : -1]
    targets = torch.from_numpy(sequence.ids[sequence.prompt_length :])[:, None]
    expected = logits.log_softmax(-1).gather(-1, targets)[:, 0]
    for completion in ended:
        assert completion.end == TURN
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)
    settings = DecodingSettings(samples=4, max_new_tokens=12)
    for ends, written in (((TURN,), ANSWER + TURN), ((), ANSWER)):
        work = Sampling(
            settings, chat, "chat", PlainRenderer(tokenizer), [Prompt("1", PROMPT, "12", None)], "exact", ends
        )
        rows = work.compute(work.setup(), work.tasks()[0].payload)["rollouts"]
        own = [row for row in rows if not row["truncated"]]
        assert {row["completion"] for row in own} == {written}
        for row in own:
            torch.testing.assert_close(torch.tensor(row["logprobs"]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [([2, TURN], (2, TURN)), (TURN, (2, TURN)), (None, (2,)), ([2, 10**6, -1], (2,)), ([], (2,))],
)
def test_stops_are_the_union_of_what_tokenizer_and_generation_settings_name(chat, tmp_path, given, expected):
    for file in chat.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    turn = load_tokenizer(chat).convert_tokens_to_ids(TURN)
    ids = json.loads(json.dumps({"eos_token_id": given}).replace(f'"{TURN}"', str(turn)))
    (tmp_path / "generation_config.json").write_text(json.dumps(ids))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token_id == 2
    assert PlainRenderer(tokenizer).stop_ids == tuple(turn if each == TURN else each for each in expected)


def test_without_generation_settings_those_of_the_model_count(chat, tmp_path):
    for file in chat.iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    turn = load_tokenizer(chat).convert_tokens_to_ids(TURN)
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, turn]}))
    assert PlainRenderer(load_tokenizer(tmp_path)).stop_ids == (2, turn)
    model, tokenizer = load_student(tmp_path)
    with torch.no_grad():
        (completion,) = generate(model, tokenizer)
    assert completion.text == ANSWER
