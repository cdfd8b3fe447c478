"""Does a run move along one direction, at an even pace, so that its first steps foretell its last?

After arXiv 2605.21468 (RELEX): the deltas that a run kept of a tensor are the rows of a matrix X [T, entries]; its best
approximation of rank 1 is c_t v, and c is fitted by a line in the step. All follows from the Gram matrix X X' [T, T].
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankOne:
    """The best approximation of rank 1 of T deltas, not centred: the base is at 0.

    ``energy`` is |X|_F^2 and ``first`` the part of it in the leading direction v, the largest squared singular value.
    ``coefficients`` [T] are the deltas along v, positive at the last one. ``r2_linear`` and ``r2_log`` are R^2 of the
    least squares of the coefficients on the step and on its logarithm, None for fewer than 3 deltas.
    """

    energy: float
    first: float
    coefficients: np.ndarray
    r2_linear: float | None
    r2_log: float | None

    @property
    def share(self) -> float:
        """Share of the energy in the leading direction."""
        return self.first / self.energy


@dataclass(frozen=True)
class Extrapolation:
    """What ``early`` deltas foretell of the last one, as squared distances to it.

    ``end`` is the energy of the last delta. ``line`` is the squared error of the line through the early coefficients,
    taken to the last step, along the early deltas' own leading direction; ``held`` that of the last early delta, and
    ``scaled`` that of the last early delta at the last one's norm, which no forecast can know.
    """

    early: int
    end: float
    line: float
    held: float
    scaled: float


def rank_one(gram: np.ndarray, steps: np.ndarray) -> RankOne | None:
    """Decompose T deltas with inner products ``gram`` [T, T] at ``steps`` [T], ascending; None if all are zero."""
    energy = float(np.trace(gram))
    if energy <= 0:
        return None
    first, coefficients, _ = _leading(gram)
    t = steps.astype(np.float64)
    fits = [_r2(x, coefficients) for x in (t, np.log(t))]
    return RankOne(energy, first, coefficients, *fits)


def walk(gram: np.ndarray) -> np.ndarray:
    """The null: inner products [T, T] of a way whose moves are as long as those of ``gram`` and all orthogonal.

    So are moves in random directions of a space of many dimensions. The move to a delta is from the one before, the
    first from the base, and min(i, j) moves are common to the deltas i and j.
    """
    energy = np.diag(gram)
    moves = energy - 2 * np.append(0, np.diag(gram, -1)) + np.append(0, energy[:-1])
    along = moves.clip(min=0).cumsum()
    return np.minimum.outer(along, along)


def extrapolate(gram: np.ndarray, steps: np.ndarray, share: float) -> Extrapolation | None:
    """Foretell the last delta from those of the first ``share`` of its steps; None where fewer than two were kept.

    The early deltas' leading direction and coefficients come from their own block of ``gram`` [T, T]; a line a + b t is
    fitted to the coefficients by least squares. None too if all of them are zero.
    """
    early = int((steps <= share * steps[-1]).sum())
    if early < 2 or early == len(steps) or np.trace(gram[:early, :early]) <= 0:
        return None
    first, coefficients, vector = _leading(gram[:early, :early])
    slope, level = np.polyfit(steps[:early], coefficients, 1)
    reached = level + slope * steps[-1]
    along = float(vector @ gram[:early, -1]) / math.sqrt(first)
    end, last, both = float(gram[-1, -1]), float(gram[early - 1, early - 1]), float(gram[early - 1, -1])
    cosine = both / math.sqrt(end * last) if end > 0 and last > 0 else 0.0
    squares = (
        reached**2 - 2 * reached * along + end,
        last - 2 * both + end,
        2 * end * (1 - cosine) if last > 0 else end,
    )
    return Extrapolation(early, end, *(max(0.0, float(square)) for square in squares))


def _leading(gram: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The largest eigenvalue, the coefficients sqrt(eigenvalue) u [T] along the direction X'u, and u [T]."""
    values, vectors = np.linalg.eigh(gram)
    u = vectors[:, -1]
    u = -u if u[-1] < 0 else u
    return float(values[-1]), math.sqrt(max(0.0, values[-1])) * u, u


def _r2(x: np.ndarray, y: np.ndarray) -> float | None:
    """Share of the variance of ``y`` that a line in ``x`` explains; None for fewer than 3 points or no variance."""
    spread = np.square(y - y.mean()).sum()
    if len(x) < 3 or spread <= 0:
        return None
    return float(np.square((x - x.mean()) @ (y - y.mean())) / (np.square(x - x.mean()).sum() * spread))
