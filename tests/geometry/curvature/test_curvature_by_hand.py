import numpy as np
import pytest
import torch
from curvature_cases import UNEQUAL, dense_ggn, dense_hessian
from tiny import TinyLM

from raygeo.geometry.curvature.draws import random_signs
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.operators import GGN, Hessian
from raygeo.geometry.curvature.quadrature import estimate_spectrum
from raygeo.geometry.curvature.trace import hutch_plus_plus

NAMES = ["embed.weight", "mix.weight", "mix.bias"]


@pytest.mark.parametrize(("kind", "dense"), [(Hessian, dense_hessian), (GGN, dense_ggn)])
def test_a_spectrum_takes_a_few_lines(kind, dense):
    model = TinyLM()
    exact = np.linalg.eigvalsh(dense(model, UNEQUAL, NAMES).numpy())[::-1]
    operator = kind(model, UNEQUAL.batches(0, 4), NAMES)
    start, probes, more = (random_signs(operator, "mine", range(k), seed=k) for k in (1, 8, 4))
    assert more.dtype == torch.float64
    found = extreme_eigenvalues(operator.matmat, start, 5)
    np.testing.assert_allclose(found.top, exact[:5], rtol=1e-2)
    trace = hutch_plus_plus(operator.matmat, found.basis, found.basis_trace, probes)
    assert trace.low <= exact.sum() <= trace.high
    spectrum = estimate_spectrum(operator.matmat, more, 12, found)
    width = spectrum.resolution(12)
    low, high = spectrum.ends
    grid = np.linspace(low - 4 * width, high + 4 * width, 400)
    band = spectrum.density(grid, width)
    truth = np.exp(-0.5 * ((grid[:, None] - exact) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))
    assert ((band.low <= truth) & (truth <= band.high)).mean() > 0.9
