"""Matrices with known eigenvalues, and random vectors for them."""

from itertools import product

import numpy as np
import torch

from raygeo.geometry.curvature.draws import named_generator, rademacher


def symmetric(eigenvalues, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A symmetric matrix with the given eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.asarray(eigenvalues, dtype=np.float64))
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return ((q * values) @ q.T).to(dtype)


def signs(n: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return rademacher(n, k, named_generator("test", seed), dtype=dtype)


def all_signs(n: int) -> torch.Tensor:
    return torch.tensor(list(product([-1.0, 1.0], repeat=n)), dtype=torch.float64).T


OUTLIERS = np.concatenate([[50.0, 20.0, 12.0, 9.0, 7.0, -5.0], np.random.default_rng(0).normal(0, 0.5, 194)])
SIX = symmetric([9.0, 4.0, 1.0, 0.5, -0.25, -2.0], seed=4)
