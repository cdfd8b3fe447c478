from random import Random

import numpy as np
import pytest
import torch
from student_cases import save_tiny_student

from raygeo.cluster.fanout import run_workload
from raygeo.rollouts.behaviour import behaviour_logprobs
from raygeo.rollouts.readers import Prompt
from raygeo.rollouts.sampling import DecodingSettings, Sampling
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.rollouts.validation import Record, validate
from raygeo.students.loading import load_student
from raygeo.students.word_problems import ProblemSettings, draw_problem


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny_student(tmp_path_factory.mktemp("teacher") / "student", seed=3)


@pytest.fixture(scope="module")
def prompts():
    rng = Random(0)
    problems = [draw_problem(ProblemSettings(), rng) for _ in range(5)]
    return [Prompt(str(i), p.prompt, p.gold, None) for i, p in enumerate(problems)]


def sample(store, teacher, prompts, **settings):
    decoding = DecodingSettings(samples=6, max_new_tokens=12, seed=1, prompts_per_task=2, batch_size=5, **settings)
    result = run_workload(Sampling(decoding, teacher, "teacher", prompts, "exact"), store)
    return [row for key in result.keys for row in store.read_unit("rollouts", key).to_pylist()]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_behaviour_logprobs_are_those_of_the_teacher_on_the_tokens_of_training(store, teacher, prompts, temperature):
    rows = sample(store, teacher, prompts, temperature=temperature)
    assert len(rows) == 30
    table = validate((Record("teacher", line, row) for line, row in enumerate(rows, 1)), max_rejected=0.5).rollouts
    model, tokenizer = load_student(teacher)
    texts = [(row["prompt"], row["completion"], not row["truncated"]) for row in table.to_pylist()]
    tokens = RolloutTokens.encode(tokenizer, texts)
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
