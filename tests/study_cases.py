"""A study small enough for tests, and what it begins with: every stage, every kind of run."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tiny import TINY, save_tiny_student

from checks.rollouts import draw_rollouts

TINY_STUDENT = {
    "architecture": TINY.model_dump(exclude_unset=True),
    "corpus": 400,
    "training": {"steps": 60, "batch_size": 16},
    "teacher": {"corpus": 200, "training": {"steps": 20, "batch_size": 16}},
}  # fmt: skip


def tiny_study(**changes: Any) -> dict[str, Any]:
    """A study of a 30 k student that has learned little; only its plumbing is real."""
    return {
        "name": "tiny",
        "student": {"word_problems": TINY_STUDENT, "cpus": 1},
        "rollouts": {
            "sample": {
                "prompts": 30,
                "decoding": {"samples": 4, "temperature": 1.0, "max_new_tokens": 40, "prompts_per_task": 15},
            },
            "heldout": 0.3,
        },
        "training": {"steps": 4, "batch_size": 8, "lr": 1e-3, "log_every": 2},
        "runs": [{"loss": {"type": "sft"}}],
        "probes": {"sequences": 8, "curvature_sequences": 4},
        "evaluation": {"answers": {"max_new_tokens": 40}},
        "geometry": {
            "subspaces": {"k": 4},
            "paths": {
                "points": 3,
                "refine": 0,
                "accuracy_points": 3,
                "accuracy_problems": 4,
                "max_new_tokens": 20,
                "bootstrap": 100,
            },
            "layerwise": {"alphas": [1.0], "bootstrap": 100},
            "soups": {"accuracy_problems": 4, "max_new_tokens": 20, "bootstrap": 100},
            "wise": {"alphas": [0.0, 0.5], "accuracy_problems": 4, "max_new_tokens": 20, "bootstrap": 100},
            "cka": {"batch_size": 4},
            "layer_cka": {"batch_size": 4},
            "drift": {"bootstrap": 100},
            "outputs": {"bootstrap": 100},
            "coherence": {"examples": 4},
            "curvature": {
                "top_k": 2,
                "max_steps": 6,
                "slq_probes": 2,
                "slq_steps": 4,
                "trace_probes": 2,
            },
            "sharpness": {"radii": [0.05], "sigmas": [0.01], "relative_sigmas": [], "draws": 2, "ascent_steps": 2},
        },
    } | changes


def save_parts(folder: Path, prompts: int = 40) -> dict[str, Any]:
    """Save an untrained student and rollouts for it, so that a study begins with training; its sections on them."""
    pq.write_table(draw_rollouts(prompts), folder / "rollouts.parquet")
    return {
        "student": {"model": str(save_tiny_student(folder / "student"))},
        "rollouts": {"read": [{"type": "parquet", "path": str(folder / "rollouts.parquet")}], "heldout": 0.3},
    }
