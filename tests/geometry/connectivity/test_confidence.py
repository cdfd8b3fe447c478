import numpy as np
import pytest
import torch
from curvature_cases import UNEQUAL, VOCAB, TinyLM, completion_logits

from raygeo.geometry.connectivity import confidence
from raygeo.geometry.connectivity.confidence import calibration, expected_calibration_error, token_confidences


def test_calibration_error_by_hand():
    # Two bins of (0, 0.5] and (0.5, 1]: |1/2 - 0.4| * 2 + |2/3 - 0.8| * 3, over 5 items.
    p, right = [0.3, 0.5, 0.7, 0.8, 0.9], [0, 1, 1, 0, 1]
    assert expected_calibration_error(p, right, bins=2) == pytest.approx((0.2 + 0.4) / 5)
    assert expected_calibration_error([1.0, 1.0], [1, 0]) == 0.5
    assert expected_calibration_error([0.5] * 4, [1, 0, 1, 0]) == 0


def test_calibrated_predictions_have_hardly_any_error_and_bold_ones_have():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 1, 20_000)
    right = rng.uniform(size=p.shape) < p
    assert expected_calibration_error(p, right) < 0.02
    assert expected_calibration_error(p.clip(0.9), right) == pytest.approx((p.clip(0.9) - right).mean(), abs=0.02)


@pytest.mark.parametrize("chunk", [None, 2 * VOCAB])
def test_token_confidences_equal_dense_ones(chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(confidence, "CHUNK_LOGITS", chunk)
    model = TinyLM()
    found = token_confidences(model, UNEQUAL.batches(0, 4))
    logits, targets = completion_logits(model, UNEQUAL)
    sizes = [s.completion_length for s in UNEQUAL.sequences]
    order = [i for rows in UNEQUAL.order(4) for i in rows]
    probabilities = torch.cat([logits.softmax(-1).split(sizes)[i] for i in order])
    hits = torch.cat([(logits.argmax(-1) == targets).double().split(sizes)[i] for i in order])
    np.testing.assert_allclose(found[0], probabilities.max(-1).values.detach().numpy(), rtol=1e-12)
    np.testing.assert_array_equal(found[1], hits.numpy())
    whole = calibration(model, UNEQUAL.batches(0, 4))
    assert whole.confidence == pytest.approx(probabilities.max(-1).values.mean().item(), rel=1e-12)
    assert whole.agreement == hits.mean().item()
    assert whole.ece == expected_calibration_error(*found)
