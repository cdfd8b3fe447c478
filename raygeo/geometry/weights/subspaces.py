"""Principal angles between the leading singular subspaces of two runs' deltas, beside those of random subspaces."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from pydantic import Field

from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.grouping import open_all
from raygeo.geometry.weights.norms import BaseWeights
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.delta import Delta, Entry, LowRank, layer_index, module_name
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

_RANK_TOLERANCE = 1e-6
_SEED = 0
_DRAWS = 256


@dataclass(frozen=True)
class Subspace:
    """Leading directions of one side of a delta, and the space they are confined to.

    ``basis`` is [d, n], orthonormal, by descending singular value. ``within`` is an orthonormal basis [d, r] of the
    space in which directions of that side must lie whatever B is: row(A), on the right of a LoRA delta; None for R^d.
    """

    basis: np.ndarray
    within: np.ndarray | None = None


def leading_subspaces(entry: Entry, k: int) -> dict[str, Subspace]:
    """The top-``k`` singular subspaces of a matrix entry: "left" (outputs) and "right" (inputs).

    They have fewer dimensions where the entry's numerical rank is less, the number of singular values of at least 1e-6
    of the largest, and none if the entry is zero.

    Raises:
        DeltaError: the entry is no matrix or not finite.
    """
    u, s, vh = linalg.svd(entry, k)
    rank = int(((s > 0) & (s >= _RANK_TOLERANCE * s[0])).sum())
    within = torch.linalg.qr(entry.a.double().T).Q.numpy() if isinstance(entry, LowRank) else None
    return {"left": Subspace(u[:, :rank].numpy()), "right": Subspace(vh[:rank].T.numpy(), within)}


def principal_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Principal angles in degrees, ascending [k], between the spans of orthonormal ``a`` [d, k] and ``b`` [d, k].

    Cosines and sines are both taken (Björck and Golub 1973, section 4), so that angles near 0 and near 90 degrees alike
    are exact to rounding.
    """
    overlap = a.T @ b
    cosines = np.linalg.svd(overlap, compute_uv=False)
    sines = np.linalg.svd(b - a @ overlap, compute_uv=False)
    return np.rad2deg(np.arctan2(sines[::-1], cosines))


def null_angles(a: Subspace, b: Subspace, k: int) -> np.ndarray:
    """Mean principal angles in degrees, ascending [k], between random ``k``-dimensional subspaces of the two spaces.

    Each random subspace is uniform within the space its side is confined to. Two LoRA deltas started from one A have
    nearly the same row(A), so that on the right chance alone gives angles far below those of R^d; if their A's are
    unrelated, the null is close to that of R^d. The mean is over 256 seeded draws.
    """
    if a.within is None or b.within is None:
        return random_angles(len(a.basis), k)
    overlap = a.within.T @ b.within
    frames_a, frames_b = _frames(overlap.shape[0], k, _SEED), _frames(overlap.shape[1], k, _SEED + 1)
    return _mean_degrees(np.swapaxes(frames_a, 1, 2) @ (overlap @ frames_b))


@lru_cache(maxsize=4096)
def random_angles(d: int, k: int) -> np.ndarray:
    """Mean principal angles in degrees, ascending [k], between uniform random ``k``-dimensional subspaces of R^d.

    By invariance one of the two may be spanned by the first k axes; the cosines are then the singular values of the top
    k x k block of a random orthonormal frame. Orthonormalising a normal k x k matrix stacked on the Bartlett factor of
    a Wishart matrix of d - k degrees of freedom gives that block at a cost free of d. The mean is over 256 draws.

    Raises:
        ValueError: k is less than 1 or more than d.
    """
    if not 1 <= k <= d:
        raise ValueError(f"R^{d} has no {k}-dimensional subspaces to compare; choose 1 <= k <= {d}.")
    rng = np.random.default_rng([_SEED, d, k])
    top = rng.standard_normal((_DRAWS, k, k))
    bottom = rng.standard_normal((_DRAWS, min(k, d - k), k))
    if d - k > k:
        bottom = np.triu(bottom, 1)
        bottom[:, range(k), range(k)] = np.sqrt(rng.chisquare(d - k - np.arange(k), size=(_DRAWS, k)))
    frame = np.linalg.qr(np.concatenate([top, bottom], axis=1)).Q
    return _mean_degrees(frame[:, :k])


@lru_cache(maxsize=64)
def _frames(d: int, k: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng([seed, d, k]).standard_normal((_DRAWS, d, k))).Q


def _mean_degrees(overlaps: np.ndarray) -> np.ndarray:
    cosines = np.linalg.svd(overlaps, compute_uv=False)
    return np.rad2deg(np.arccos(cosines.clip(max=1.0))).mean(axis=0)


class SubspaceSettings(Settings):
    """Options of the subspace comparison."""

    k: int = Field(8, ge=1)
    """Singular directions compared on each side, fewer where a delta's numerical rank is less."""


class Subspaces(Workload):
    """Principal angles of all unordered pairs of runs; one task a module, rows for table ``subspaces``.

    Of each matrix that both runs changed, the top-k left and right singular subspaces are compared, with k of the
    settings or the lesser numerical rank if that is less. ``index`` counts the angles from the smallest, 0;
    ``dimension`` is that of the singular vectors; ``null_degrees`` is the mean of that angle by chance
    (``null_angles``). A right-hand null below that of R^dimension says that the two deltas' row spaces overlap, as
    those of LoRA runs started from one A do.
    """

    name = "subspaces"
    tables = ("subspaces",)

    def __init__(self, settings: SubspaceSettings, runs: Sequence[Run], base: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base

    def tasks(self) -> list[Task]:
        """One task for each matrix that at least two runs hold; the cost is how many numbers are read."""
        base, deltas = self.setup()
        holders: defaultdict[str, list[tuple[Run, Delta]]] = defaultdict(list)
        for run, delta in zip(self.runs, deltas, strict=True):
            for name in delta:
                holders[name].append((run, delta))
        tasks = []
        for name, held in sorted(holders.items()):
            if len(base.shape(name)) == 2 and len(held) > 1:
                key = content_key(self.name, self.settings, name, [[run.name, run.key] for run, _ in held])
                cost = sum(delta.sizes[name] for _, delta in held)
                tasks.append(Task(key, float(cost), name, f"subspaces of {module_name(name)}"))
        return tasks

    def setup(self) -> tuple[BaseWeights, list[Delta]]:
        """Open the base checkpoint and every delta."""
        return BaseWeights(self.base), open_all(self.runs)

    def compute(self, state: tuple[BaseWeights, list[Delta]], payload: str) -> dict[str, Rows]:
        """Rows of one parameter, all pairs; each delta is decomposed once."""
        base, deltas = state
        spaces = {}
        for run, delta in zip(self.runs, deltas, strict=True):
            entry = delta.get(payload)
            if entry is not None:
                base.check(payload, entry)
                spaces[run.name] = leading_subspaces(entry, self.settings.k)
        place = {"module": module_name(payload), "layer": layer_index(payload)}
        return {
            "subspaces": [
                {"run_a": run_a, "run_b": run_b, **place, "side": side, **row}
                for (run_a, a), (run_b, b) in combinations(spaces.items(), 2)
                for side in ("left", "right")
                for row in _angle_rows(a[side], b[side])
            ]
        }


def _angle_rows(a: Subspace, b: Subspace) -> Rows:
    dimension, k = len(a.basis), min(a.basis.shape[1], b.basis.shape[1])
    if k == 0:
        return []
    angles = principal_angles(a.basis[:, :k], b.basis[:, :k])
    return [
        {"k": k, "dimension": dimension, "index": i, "angle_degrees": float(angle), "null_degrees": float(null)}
        for i, (angle, null) in enumerate(zip(angles, null_angles(a, b, k), strict=True))
    ]
