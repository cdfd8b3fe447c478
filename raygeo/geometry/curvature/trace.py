"""The trace of a symmetric operator from random vectors: Hutch++."""

import numpy as np
from torch import Tensor

from raygeo.geometry.curvature.lanczos import MatMat


def hutch_plus_plus(matmat: MatMat, basis: Tensor, inside: float, probes: Tensor) -> tuple[float, float]:
    """The trace and its standard error (NaN from one probe), from Rademacher ``probes`` [n, p]: p products, in a block.

    Within the span of ``basis`` Q [n, d], orthonormal, the trace is exact: ``inside`` = tr(Q'AQ). The rest is estimated
    by Hutchinson's mean of g'(I - QQ')A(I - QQ')g over the probes g. The estimate is unbiased for every Q that was not
    made from the probes, and its error is small where Q holds what of A is large. Meyer, Musco, Musco & Woodruff 2021
    (Hutch++, arXiv:2010.09649, algorithm 1) take for Q the image of random vectors; a Krylov basis, where there is one
    already, holds more and costs nothing (Chen & Hallman 2023, arXiv:2205.01736).

    Raises:
        ValueError: there is no probe.
    """
    if probes.shape[1] == 0:
        raise ValueError("the trace outside the basis needs at least one probe")
    for _ in range(2):
        probes = probes - basis @ (basis.T @ probes)
    mean, error = mean_and_error((probes * matmat(probes)).double().sum(0).cpu().numpy())
    return inside + float(mean), float(error)


def mean_and_error(samples: np.ndarray) -> tuple:
    """Mean over the first axis and its standard error; one sample gives an error of NaN."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples)) if len(samples) > 1 else np.full(samples.shape[1:], np.nan)
    return samples.mean(0), error
