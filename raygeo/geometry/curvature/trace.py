"""The trace of a symmetric operator from random vectors: Hutch++."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raygeo.geometry.curvature.lanczos import MatMat


@dataclass(frozen=True)
class Trace:
    """An unbiased estimate, its standard error (NaN from fewer than two probes), and the single products it took."""

    value: float
    error: float
    products: int


def hutch_plus_plus(matmat: MatMat, sketch: Tensor, probes: Tensor) -> Trace:
    """Estimate the trace from independent Rademacher vectors ``sketch`` [n, s] and ``probes`` [n, p].

    With Q [n, s] an orthonormal basis of the image of the sketch, the trace within Q is taken exactly and the rest by
    Hutchinson's estimator, tr(Q'AQ) + mean of g'(I - QQ')A(I - QQ')g over the probes g (Meyer, Musco, Musco & Woodruff
    2021, arXiv:2010.09649, algorithm 1, which splits its products evenly: s = p). Given Q the terms of the mean are
    independent and unbiased, so their standard error is that of the estimate. It takes 2 s + p products, in three
    blocks. Without a sketch, s = 0, it is Hutchinson's estimator itself.

    Raises:
        ValueError: there is no probe.
    """
    if probes.shape[1] == 0:
        raise ValueError("the trace outside the sketch needs at least one probe")
    exact = 0.0
    if sketch.shape[1]:
        q = torch.linalg.qr(matmat(sketch))[0]
        exact = float((q * matmat(q)).double().sum())
        for _ in range(2):
            probes = probes - q @ (q.T @ probes)
    samples = (probes * matmat(probes)).double().sum(0).cpu().numpy()
    mean, error = mean_and_error(samples)
    return Trace(exact + float(mean), float(error), 2 * sketch.shape[1] + probes.shape[1])


def mean_and_error(samples: np.ndarray) -> tuple:
    """Mean over the first axis and its standard error; one sample gives an error of NaN."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples)) if len(samples) > 1 else np.full(samples.shape[1:], np.nan)
    return samples.mean(0), error
