"""A study small enough for tests: every stage, every kind of run, minutes shorter than the quick start."""

from typing import Any

TINY_STUDENT = {
    "architecture": {
        "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate": 64, "context": 128,
    },
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
                "prompts": 60,
                "decoding": {"samples": 4, "temperature": 1.0, "max_new_tokens": 40, "prompts_per_task": 30},
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
