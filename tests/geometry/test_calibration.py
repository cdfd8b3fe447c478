import numpy as np
import pytest
import torch
from curvature_cases import UNEQUAL
from tiny import TinyLM

from raygeo.analyses.outputs.workload import confidence
from raygeo.geometry.calibration import binned_gaps, expected_calibration_error
from raygeo.geometry.connectivity.confidence import calibration
from raygeo.models.likelihood import Likelihood


def ece(p, right, **options):
    return expected_calibration_error(torch.tensor(p), torch.tensor(right, dtype=torch.float64), **options)


def test_calibration_error_by_hand():
    # Two bins of (0, 0.5] and (0.5, 1]: |1/2 - 0.4| * 2 + |2/3 - 0.8| * 3, over 5 items.
    assert ece([0.3, 0.5, 0.7, 0.8, 0.9], [0, 1, 1, 0, 1], bins=2) == pytest.approx((0.2 + 0.4) / 5)
    assert ece([1.0, 1.0], [1, 0]) == 0.5
    assert ece([0.5] * 4, [1, 0, 1, 0]) == 0


def test_an_edge_belongs_to_the_bin_below_it_and_padding_to_none():
    p = torch.tensor([0.25, 0.5, 0.75, 1.0, 1e-9, 0.0])
    gaps = binned_gaps(p, torch.tensor([0.0, 0, 0, 0, 0, 1]), 4)
    np.testing.assert_allclose(gaps, [0.25, 0.5, 0.75, 1.0], atol=1e-8)


def test_calibrated_predictions_have_hardly_any_error_and_bold_ones_have():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 1, 20_000)
    right = rng.uniform(size=p.shape) < p
    assert ece(p, right) < 0.02
    assert ece(p.clip(0.9), right) == pytest.approx((p.clip(0.9) - right).mean(), abs=0.02)


def test_both_tables_hold_the_same_error():
    model, batches = TinyLM(), UNEQUAL.batches(0, 4)
    with torch.no_grad():  # a head of zeros puts every token's probability on the edge of a bin
        model.head.weight.zero_()
    found = [Likelihood(model, confidence)(batch) for batch in batches]
    gaps = sum(binned_gaps(part["max_probability"], part["top1_accuracy"], 7).sum(0) for part in found)
    p, right = (torch.cat([part[name][batch.mask] for part, batch in zip(found, batches, strict=True)])
                for name in ("max_probability", "top1_accuracy"))  # fmt: skip
    np.testing.assert_allclose(p.detach(), 1 / 7, rtol=1e-12)
    assert float(gaps.abs().sum()) / len(p) == pytest.approx(expected_calibration_error(p, right, 7), rel=1e-12)
    assert calibration(model, batches).ece == pytest.approx(abs(1 / 7 - float(right.mean())), rel=1e-12)
