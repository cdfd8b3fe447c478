from random import Random

import numpy as np
import pytest
import torch
from tiny import save_tiny_student

from raygeo.cluster.execution import run_workload
from raygeo.data.behaviour import behaviour_logprobs
from raygeo.data.merging import validate
from raygeo.data.readers import Prompt
from raygeo.data.sampling import DecodingSettings, Sampling
from raygeo.data.tokens import RolloutTokens
from raygeo.data.validation import Record
from raygeo.generation.local import LocalSettings
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.loading import load_student, load_tokenizer
from raygeo.toy.word_problems import ProblemSettings, draw_problem


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny_student(tmp_path_factory.mktemp("teacher") / "student", seed=3)


@pytest.fixture(scope="module")
def prompts():
    rng = Random(0)
    problems = [draw_problem(ProblemSettings(), rng) for _ in range(5)]
    return [Prompt(str(i), p.prompt, p.gold, None) for i, p in enumerate(problems)]


def sampling(teacher, prompts, **settings):
    decoding = DecodingSettings(samples=6, max_new_tokens=12, seed=1, prompts_per_task=2, batch_size=5, **settings)
    return Sampling(decoding, teacher, "teacher", PlainRenderer(load_tokenizer(teacher)), prompts, "exact")


def sample(store, teacher, prompts, **settings):
    result = run_workload(sampling(teacher, prompts, **settings), store)
    return [row for key in result.keys for row in store.read_unit("rollouts", key).to_pylist()]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_behaviour_logprobs_are_those_of_the_teacher_on_the_tokens_of_training(store, teacher, prompts, temperature):
    rows = sample(store, teacher, prompts, temperature=temperature)
    assert len(rows) == 30
    table = validate((Record("teacher", line, row) for line, row in enumerate(rows, 1)), max_set_aside=0.5).rollouts
    model, tokenizer = load_student(teacher)
    texts = [(row["prompt"], row["completion"], not row["truncated"]) for row in table.to_pylist()]
    tokens = RolloutTokens.encode(PlainRenderer(tokenizer), texts)
    assert any(length < 12 for length in tokens.completion_lengths[table["truncated"].to_numpy()])  # specials dropped
    flat = behaviour_logprobs(table, tokens)
    assert flat.dtype == np.float32
    for row in range(len(tokens)):
        sequence = tokens[row]
        with torch.no_grad():
            logits = model(torch.from_numpy(sequence.ids)[None]).logits[0, sequence.prompt_length - 1 : -1]
        targets = torch.from_numpy(sequence.ids[sequence.prompt_length :])[:, None]
        expected = (logits / temperature).log_softmax(-1).gather(-1, targets).squeeze(-1)
        start, end = tokens.completion_offsets[row : row + 2]
        np.testing.assert_allclose(flat[start:end], expected.numpy(), rtol=0, atol=1e-5)


def test_greedy_rollouts_have_no_behaviour_logprobs(store, teacher, prompts):
    assert {row["logprobs"] for row in sample(store, teacher, prompts, temperature=0.0)} == {None}


@pytest.mark.parametrize(("owner", "name"), [(PlainRenderer, "identity"), (LocalSettings, "revision")])
def test_another_renderer_or_engine_samples_anew(teacher, prompts, monkeypatch, owner, name):
    before = {task.key for task in sampling(teacher, prompts).tasks()}
    assert {task.key for task in sampling(teacher, prompts).tasks()} == before
    monkeypatch.setattr(owner, name, "other")
    assert before.isdisjoint(task.key for task in sampling(teacher, prompts).tasks())
