import pytest

from raygeo.evaluation.summary import run_summaries
from raygeo.tables import SCHEMAS, to_arrow


def tables(**rows):
    return {name: to_arrow(name, rows.get(name, [])) for name in SCHEMAS}


def test_comparisons_are_with_the_reference_whichever_way_a_pair_stands():
    angle = {"module": "m", "side": "left", "k": 1, "index": 0}
    found = run_summaries(
        tables(
            similarity=[
                {"run_a": "dpo", "run_b": "sft", "scope": "global", "cosine": 0.1, "orthogonal_fraction": 0.9},
                {"run_a": "sft", "run_b": "dpo", "scope": "global", "cosine": 0.1, "orthogonal_fraction": 0.8},
                {"run_a": "dpo", "run_b": "sft", "scope": "layer", "cosine": 0.5, "orthogonal_fraction": 0.5},
            ],
            subspaces=[
                {**angle, "run_a": a, "run_b": b, "angle_degrees": degrees}
                for a, b, degrees in (
                    ("sft", "dpo", 10.0),
                    ("dpo", "sft", 40.0),
                    ("sft", "dpo", 20.0),
                    ("sft", "dpo", 30.0),
                )
            ],
            barriers=[
                {"run_a": "dpo", "run_b": "sft", "probe": "solutions", "chord": 0.25},
                {"run_a": "base", "run_b": "dpo", "probe": "solutions", "chord": 7.0},
            ],
            cka=[
                {"run_a": "base", "run_b": "dpo", "layer": layer, "treatment": "plain", "cka": layer / 10}
                for layer in (0, 3)
            ]
            + [{"run_a": "base", "run_b": "dpo", "layer": 3, "treatment": "without_1_pc", "cka": 0.1}],
        ),
        "sft",
    )
    assert found["dpo"] == pytest.approx(
        {
            "cosine_to_reference": 0.1,
            "orthogonal_to_reference": 0.9,
            "first_left_angle_to_reference": 25.0,
            "barrier_to_reference.solutions": 0.25,
            "last_cka_to_base": 0.3,
        }
    )


def test_ends_of_paths_and_the_base_are_summarised_and_nulls_left_out():
    path = {"run_a": "base", "run_b": "sft", "probe": "solutions", "metric": "nll", "n": 4}
    found = run_summaries(
        tables(
            paths=[{**path, "alpha": alpha, "loss": 1.0 - alpha / 2} for alpha in (0.0, 0.5, 1.0)]
            + [{**path, "probe": "problems", "metric": "accuracy", "alpha": 1.0, "accuracy": 0.5}],
            curvature=[
                {"run": "base", "operator": "hessian", "quantity": "eigenvalue", "index": i, "value": 5.0 - i}
                for i in (0, 1)
            ],
            sharpness=[{"run": "base", "measure": "layer noise", "radius": 0.1, "value": 0.25}],
        ),
        "sft",
    )
    assert found == {
        "base": {"nll.solutions": 1.0, "top_eigenvalue.hessian": 5.0, "sharpness.layer_noise.0.1": 0.25},
        "sft": {"nll.solutions": 0.5},
    }


def test_drift_predictions_and_gradients_are_summarised():
    pair = {"n": 2, "tokens": 9}
    found = run_summaries(
        tables(
            drift=[
                {"run": "dpo", "layer": layer, "cosine": 1 - layer / 10, "change": layer / 5} for layer in (0, 2, 1)
            ],
            divergences=[
                {**pair, "run_a": a, "run_b": b, "quantity": quantity, "value": value}
                for a, b, quantity, value in (
                    ("base", "dpo", "kl_ab", 0.1),
                    ("base", "dpo", "kl_ba", 0.2),
                    ("base", "dpo", "agreement", 0.9),
                    ("sft", "dpo", "kl_ba", 7.0),
                    ("sft", "dpo", "agreement", 0.8),
                    ("dpo", "rft", "agreement", 0.1),
                )
            ],
            outputs=[{**pair, "run": "base", "quantity": "ece", "value": 0.04}],
            coherence=[{"run": "dpo", "at": at, "coherence": value} for at, value in (("base", 3.0), ("run", 1.5))],
            gradient_cosines=[
                {"run_a": "sft", "run_b": "dpo", "cosine": -0.3, "n": 4},
                {"run_a": "dpo", "run_b": "rft", "cosine": 0.5, "n": 4},
            ],
        ),
        "sft",
    )
    assert found.pop("base") == {"predictions.ece": 0.04}
    assert found == {
        "dpo": {
            "last_drift_cosine": 0.8,
            "last_drift_change": 0.4,
            "kl_from_base": 0.1,
            "kl_to_base": 0.2,
            "agreement_with_base": 0.9,
            "agreement_with_reference": 0.8,
            "coherence_at_base": 3.0,
            "coherence_at_run": 1.5,
            "gradient_cosine_to_reference": -0.3,
        }
    }


def test_weights_before_and_after_are_summarised_as_a_whole():
    row = {"run": "dpo", "scope": "global"}
    found = run_summaries(
        tables(
            off_principal=[
                {**row, "update_sparsity": 0.75, "spectral_shift": 1e-4},
                {**row, "scope": "layer", "update_sparsity": 0.5, "spectral_shift": 1.0},
            ],
            mask_overlaps=[
                {**row, "mask": mask, "overlap": overlap}
                for mask, overlap in (("principal", 0.25), ("low-magnitude", 0.5), ("neither", 0.125))
            ],
        ),
        "sft",
    )
    assert found["dpo"] == {
        "update_sparsity": 0.75,
        "spectral_shift": 1e-4,
        "principal_overlap": 0.25,
        "low_magnitude_overlap": 0.5,
    }


def test_curvature_is_that_of_the_first_space():
    rows = [
        {"run": "base", "operator": "hessian", "space": space, "quantity": quantity, "index": 0, "value": value}
        for space, value in (("delta", 5.0), ("span", 2.0))
        for quantity in ("eigenvalue", "trace")
    ]
    assert run_summaries(tables(curvature=rows), "sft") == {
        "base": {"top_eigenvalue.hessian": 5.0, "trace.hessian": 5.0}
    }
