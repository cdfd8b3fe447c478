"""A tiny student and graded rollouts for it, made here."""

from pathlib import Path
from random import Random

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from raygeo.students.architecture import Architecture, build_model
from raygeo.students.word_problems import Carelessness, ProblemSettings, draw_problem, solve, word_tokenizer
from raygeo.tables import to_arrow

TINY = Architecture(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, context=128)


def tiny_qwen(vocabulary: int, seed: int = 0, **changes) -> Qwen3ForCausalLM:
    """A random Qwen3 with two layers, tied embeddings and SDPA, exact in fp64, unless ``changes`` say otherwise."""
    shape = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 64, "tie_word_embeddings": True, "attn_implementation": "sdpa",
    }  # fmt: skip
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, **(shape | changes))).eval()


def save_tiny_student(folder: Path, seed: int = 0) -> Path:
    """Save an untrained student of about 30 k parameters."""
    tokenizer = word_tokenizer()
    model = build_model(TINY, tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draw_rollouts(prompts: int, samples: int = 4, seed: int = 0):
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
