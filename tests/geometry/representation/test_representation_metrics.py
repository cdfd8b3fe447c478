import pytest

from raygeo.analyses.cka.analysis import ANALYSIS as CKA
from raygeo.analyses.coherence.analysis import ANALYSIS as COHERENCE
from raygeo.analyses.drift.analysis import ANALYSIS as DRIFT
from raygeo.analyses.outputs.analysis import ANALYSIS as OUTPUTS
from raygeo.report.view import View
from raygeo.tables import to_arrow


def measured(analysis, **rows):
    """What the analysis says of each run, compared with the run sft, from some rows of its tables."""
    tables = {name: to_arrow(name, rows.get(name, []), columns) for name, columns in analysis.tables.items()}
    found = {}
    for metrics in analysis.report.metrics:
        for run, name, value in metrics(View(tables, "sft")):
            assert name not in found.setdefault(run, {}), "one value a run and name"
            found[run][name] = value
    return found


def test_cka_is_plain_and_of_the_last_layer_whichever_way_a_pair_stands():
    row = {"run_a": "base", "run_b": "dpo", "layer": 3, "treatment": "plain", "cka": 0.3}
    found = measured(
        CKA,
        cka=[
            row | {"layer": 0, "cka": 0.0},
            row,
            row | {"treatment": "without_1_pc", "cka": 0.1},
            row | {"run_a": "dpo", "run_b": "sft", "cka": 0.7},
        ],
    )
    assert found == {"dpo": {"last_cka_to_base": 0.3, "last_cka_to_reference": 0.7}}
    assert measured(CKA) == {}


def test_drift_is_that_of_the_last_layer():
    row = {"run": "dpo", "n": 2, "tokens": 9}
    found = measured(
        DRIFT, drift=[row | {"layer": layer, "cosine": 1 - layer / 10, "change": layer / 5} for layer in (0, 2, 1)]
    )
    assert found == {"dpo": {"last_drift_cosine": 0.8, "last_drift_change": pytest.approx(0.4)}}


def test_divergences_are_named_after_what_they_are_from():
    pair = {"n": 2, "tokens": 9}
    found = measured(
        OUTPUTS,
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
    )
    assert found == {
        "base": {"predictions/ece": 0.04},
        "dpo": {
            "kl_from_base": 0.1,
            "kl_to_base": 0.2,
            "agreement_with_base": 0.9,
            "agreement_with_reference": 0.8,
        },
    }


def test_coherence_is_told_at_the_base_and_at_the_run():
    found = measured(
        COHERENCE,
        coherence=[{"run": "dpo", "at": at, "coherence": value} for at, value in (("base", 3.0), ("run", 1.5))],
        gradient_cosines=[
            {"run_a": "sft", "run_b": "dpo", "cosine": -0.3, "n": 4},
            {"run_a": "dpo", "run_b": "rft", "cosine": 0.5, "n": 4},
        ],
    )
    assert found == {"dpo": {"coherence_at_base": 3.0, "coherence_at_run": 1.5, "gradient_cosine_to_reference": -0.3}}
