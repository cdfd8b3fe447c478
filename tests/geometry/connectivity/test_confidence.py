import numpy as np
import pytest
import torch
from curvature_cases import UNEQUAL, VOCAB, completion_logits
from tiny import TinyLM

from raygeo.geometry.calibration import expected_calibration_error
from raygeo.geometry.connectivity import confidence
from raygeo.geometry.connectivity.confidence import calibration, token_confidences


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
