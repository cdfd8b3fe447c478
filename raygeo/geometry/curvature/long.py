"""Linear algebra of few vectors with very many entries, kept as rows [k, n]. What is summed over n is summed in fp64.

A sum of n terms in fp32 drifts with n, since each term is rounded against the sum so far: LAPACK's QR makes columns of
norm 1 + 1e-5 at 0.6 M entries and 1.005 at 60 M. Vectors stay in their own dtype; a part of them is widened at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of all rows of ``a`` [p, n] with all of ``b`` [q, n]: [p, q] fp64."""
    total = a.new_zeros(len(a), len(b), dtype=torch.float64)
    for part in _parts(a, b):
        total.addmm_(a[:, part].double(), b[:, part].double().T)
    return total


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of each row of ``a`` [k, n] with that of ``b`` [k, n]: [k] fp64."""
    total = a.new_zeros(len(a), dtype=torch.float64)
    for part in _parts(a, b):
        total += (a[:, part].double() * b[:, part].double()).sum(1)
    return total


def norm(vector: Tensor) -> float:
    """Euclidean norm of ``vector`` [n]; squares of what fp32 holds do not overflow."""
    return float(dots(vector[None], vector[None]).sqrt())


def triangle(rows: Tensor) -> Tensor:
    """R [k, k] fp64 of a QR factorisation of the matrix whose columns are ``rows`` [k, n].

    Householder, part after part of the entries below the R so far (sequential TSQR; Demmel, Grigori, Hoemmen & Langou
    2012, https://doi.org/10.1137/080731992): as accurate as one QR in fp64, where a Gram matrix squares the condition.
    """
    r = rows.new_zeros(0, len(rows), dtype=torch.float64)
    for part in _parts(rows):
        r = torch.linalg.qr(torch.cat([r, rows[:, part].double().T]), mode="r").R
    return torch.cat([r, r.new_zeros(len(rows) - len(r), len(rows))])


def combine(coefficients: Tensor, rows: Tensor) -> Tensor:
    """Combinations ``coefficients`` [p, k] fp64 of ``rows`` [k, n]: [p, n], each entry rounded once."""
    out = rows.new_empty(len(coefficients), rows.shape[1])
    for part in _parts(rows, out):
        out[:, part] = coefficients @ rows[:, part].double()
    return out


def replace(rows: Tensor, coefficients: Tensor) -> None:
    """Put the p <= k combinations ``coefficients`` [p, k] fp64 of ``rows`` [k, n] in place of the first p of them."""
    for part in _parts(rows):
        rows[: len(coefficients), part] = (coefficients @ rows[:, part].double()).to(rows.dtype)


def remove(rows: Tensor, basis: Tensor) -> Tensor:
    """Take from ``rows`` [k, n], in place, what lies in the span of the orthonormal rows of ``basis`` [d, n].

    Once leaves roundings of what was taken; doing it twice leaves roundings of what is left.
    """
    return rows.addmm_(inner(rows, basis).to(rows.dtype), basis, alpha=-1) if len(basis) else rows


def _parts(*matrices: Tensor) -> Iterator[slice]:
    """Divide the columns so that 2^20 (8 MiB in fp64, near the caches) of all entries are widened at a time, on an
    accelerator 2^24, where starting many small products would take longer than they do.
    """
    entries = 1 << (20 if matrices[0].device.type == "cpu" else 24)
    width = max(1, entries // max(1, sum(map(len, matrices))))
    return (slice(start, start + width) for start in range(0, matrices[0].shape[1], width))
