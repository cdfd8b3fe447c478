"""What analyses of the weights alone need: factors or matrices read, and decomposed on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

from raygeo.footprint.need import Need, Scale, Terms, Work, rate_name


def matrices(scale: Scale) -> dict[str, tuple[int, int]]:
    """Shapes of the matrices that deltas touch."""
    return {name: (shape[0], shape[1]) for name, shape in scale.model.shapes.items() if len(shape) == 2}


def decomposition(shape: tuple[int, int]) -> float:
    """Operations of all singular values of a dense matrix [m, n], m >= n: 8 m n^2 / 3 for the bidiagonal form, and as
    much again for vectors (Golub & Van Loan, Matrix Computations, figure 8.6.1, rounded up).
    """
    m, n = max(shape), min(shape)
    return 6.0 * m * n * n


def _every(parameter: str) -> bool:
    return True


def weights_needed(
    name: str,
    scale: Scale,
    units: int,
    *,
    decompositions: int = 0,
    products: int = 0,
    chosen: Callable[[str], bool] = _every,
    host: Terms | None = None,
) -> Need:
    """An analysis that decomposes every ``chosen`` matrix of each run's delta so often, and multiplies it with so many
    others.

    Of LoRA deltas only factors are read: their triangles [r, r] are decomposed and multiplied. ``host`` is the memory
    of a task; by default that of a decomposition of the largest tensor.
    """
    shapes = [shape for parameter, shape in matrices(scale).items() if chosen(parameter)]
    if scale.rank is not None:
        rank = scale.rank
        one = sum(4.0 * (m + n) * rank * rank + decomposition((rank, rank)) for m, n in shapes)
        both = sum(2.0 * (m + n) * rank * rank for m, n in shapes)
        largest = max((2 * m * n for m, n in shapes), default=0)
    else:
        one = sum(map(decomposition, shapes))
        both = sum(2.0 * m * n for m, n in shapes)
        largest = max(map(math.prod, scale.model.shapes.values()))
    flops = scale.trained * (decompositions * one + products * both)
    host = host or {"a matrix and its decomposition": 4 * 8 * largest}
    return Need(f"geometry.{name}", units, Work(flops, "fp64"), host=host, on="cpu", rate=rate_name(name))


def weights_decomposed(name: str, scale: Scale, chosen: Callable[[str], bool], times: int, *, copies: int) -> Need:
    """An analysis that decomposes every matrix of the model that is ``chosen`` so often, one task a matrix.

    ``copies`` are how many matrices in fp64 a task holds.
    """
    shapes = [shape for parameter, shape in matrices(scale).items() if chosen(parameter)]
    largest = max((rows * columns for rows, columns in shapes), default=0)
    work = Work(sum(map(decomposition, shapes)) * times, "fp64")
    host = {"a matrix and its decompositions": copies * largest * 8}
    return Need(f"geometry.{name}", len(shapes), work, host=host, on="cpu", rate=rate_name(name))
