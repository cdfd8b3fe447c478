"""Graded rollouts of word problems, for checks and tests that need no model to write them."""

from random import Random

import pyarrow as pa

from raygeo.tables import to_arrow
from raygeo.toy.word_problems import Carelessness, ProblemSettings, draw_problem, solve


def draw_rollouts(prompts: int, samples: int = 4, seed: int = 0) -> pa.Table:
    """A ``rollouts`` table of word problems, about half of the solutions wrong."""
    rng = Random(seed)
    careless = Carelessness(carry=0.4, gets=0.4, gives=0.2, skip=0.1)
    rows = []
    for i in range(prompts):
        problem = draw_problem(ProblemSettings(), rng)
        for sample in range(samples):
            completion = solve(problem, careless, rng, "teacher")
            correct = completion.endswith(f" {problem.gold}")
            rows.append(
                {"prompt_id": str(i), "prompt": problem.prompt, "gold": problem.gold, "sample": sample,
                 "completion": completion, "reward": float(correct), "correct": correct, "truncated": False,
                 "source": "test", "split": "train"}
            )  # fmt: skip
    return to_arrow("rollouts", rows)
