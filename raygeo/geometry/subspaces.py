"""Principal angles between the leading singular subspaces of two runs' deltas, beside those of random subspaces."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import scipy.linalg
from pydantic import Field

from raygeo.geometry import linalg
from raygeo.geometry.norms import BaseWeights, entry_cost
from raygeo.geometry.similarity import open_all
from raygeo.settings import Settings, content_key
from raygeo.students.delta import Delta, Entry, LowRank, layer_index, module_name
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

_RANK_TOLERANCE = 1e-6
_SEED = 0
_DRAWS = 256


@dataclass(frozen=True)
class Subspace:
    """Leading directions of one side of a delta, and the space they are confined to.

    ``basis`` is [d, n], orthonormal, by descending singular value. ``within`` is an orthonormal basis [d, r] of the space
    in which any direction of that side must lie whatever was learned in B, row(A) of a LoRA delta; None for all of R^d.
    """

    basis: np.ndarray
    within: np.ndarray | None = None


def leading_subspaces(entry: Entry, k: int) -> dict[str, Subspace]:
    """The top-``k`` singular subspaces of a matrix entry: "left" (outputs) and "right" (inputs).

    They have fewer dimensions where the entry's numerical rank, the number of singular values above 1e-6 of the largest,
    is less, and none if the entry is zero.

    Raises:
        DeltaError: the entry is no matrix or not finite.
    """
    u, s, vh = linalg.svd(entry, None if isinstance(entry, LowRank) else k)
    rank = int((s[:k] > _RANK_TOLERANCE * s[0]).sum())
    right = vh.T.numpy()
    within = right if isinstance(entry, LowRank) else None
    return {"left": Subspace(u[:, :rank].numpy()), "right": Subspace(right[:, :rank], within)}


def principal_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Principal angles in degrees, ascending, between the spans of ``a`` [d, k] and ``b`` [d, k].

    Small angles come from sines, so they are exact to rounding (Knyazev and Argentati 2002, algorithm 3.1).
    """
    return np.rad2deg(scipy.linalg.subspace_angles(a, b))[::-1]


def null_angles(a: Subspace, b: Subspace, k: int) -> np.ndarray:
    """Mean principal angles in degrees, ascending [k], between random ``k``-dimensional subspaces of the two spaces.

    Each random subspace is uniform within the space its side is confined to. Two LoRA deltas started from one A share
    row(A), so that on the right chance alone gives angles far below those of R^d; when their A's are unrelated this tends
    to the null of R^d. The mean is over 256 seeded draws.
    """
    if a.within is None or b.within is None:
        return random_angles(len(a.basis), k)
    overlap = a.within.T @ b.within
    frames_a, frames_b = _frames(overlap.shape[0], k, _SEED), _frames(overlap.shape[1], k, _SEED + 1)
    return _mean_degrees(np.swapaxes(frames_a, 1, 2) @ (overlap @ frames_b))


@lru_cache(maxsize=4096)
def random_angles(d: int, k: int) -> np.ndarray:
    """Mean principal angles in degrees, ascending [k], between uniform random ``k``-dimensional subspaces of R^d.

    By invariance one of the two may be the first k axes; the cosines are then the singular values of the top k x k block
    of a random orthonormal frame. Stacking a k x k normal matrix on the Bartlett factor of a Wishart matrix of d - k
    degrees of freedom and orthonormalising gives that block at a cost that does not depend on d. 256 seeded draws.

    Raises:
        ValueError: k is less than 1 or more than d.
    """
    if not 1 <= k <= d:
        raise ValueError(f"R^{d} has no subspaces of {k} dimensions to compare; choose 1 <= k <= {d}.")
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


def _mean_degrees(cosines: np.ndarray) -> np.ndarray:
    singular = np.linalg.svd(cosines, compute_uv=False)
    return np.rad2deg(np.arccos(singular.clip(max=1.0))).mean(axis=0)


class SubspaceSettings(Settings):
    """Options of the subspace comparison."""

    k: int = Field(default=8, ge=1)
    """Singular directions compared on each side, fewer where a delta's numerical rank is less."""


class Subspaces(Workload):
    """Principal angles of all unordered pairs of runs, module by module; one task a module, rows for table ``subspaces``.

    Of each matrix that both runs changed, the top-k left and right singular subspaces are compared, k the settings' or the
    smaller of the two numerical ranks. ``index`` counts the angles from the smallest, 0; ``dimension`` is that of the
    singular vectors; ``null_degrees`` is that angle's mean by chance (``null_angles``). A right-hand null below that of
    R^dimension says that the two LoRA deltas' row spaces overlap, as they do when they started from one A.
    """

    name = "subspaces"
    tables = ("subspaces",)

    def __init__(self, runs: list[Run], base: str, settings: SubspaceSettings | None = None):
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.settings = settings or SubspaceSettings()

    def tasks(self) -> list[Task]:
        """One task for each matrix that at least two runs hold."""
        base, deltas = self.setup()
        tasks = []
        for name in sorted(set().union(*deltas)):
            shape = base.shape(name)
            here = [(run.key, delta) for run, delta in zip(self.runs, deltas, strict=True) if name in set(delta)]
            if len(shape) == 2 and len(here) > 1:
                key = content_key(self.name, self.settings, sorted(key for key, _ in here), name)
                cost = sum(entry_cost(delta, shape) for _, delta in here)
                tasks.append(Task(key=key, cost=cost, payload=name, label=module_name(name)))
        return tasks

    def setup(self) -> tuple[BaseWeights, list[Delta]]:
        """Open the base checkpoint and every delta."""
        return BaseWeights(self.base), open_all(self.runs)

    def compute(self, state: tuple[BaseWeights, list[Delta]], payload: str) -> dict[str, Rows]:
        """Rows of one parameter, all pairs; each delta is decomposed once."""
        base, deltas = state
        sides = {}
        for run, delta in zip(self.runs, deltas, strict=True):
            entry = delta.get(payload)
            if entry is not None:
                base.check(payload, entry)
                sides[run.name] = leading_subspaces(entry, self.settings.k)
        rows: Rows = []
        for (run_a, a), (run_b, b) in combinations(sides.items(), 2):
            for side in a:
                pair = {"run_a": run_a, "run_b": run_b, "module": module_name(payload), "layer": layer_index(payload)}
                rows += [pair | {"side": side} | row for row in _angle_rows(a[side], b[side])]
        return {"subspaces": rows}


def _angle_rows(a: Subspace, b: Subspace) -> Rows:
    dimension, k = len(a.basis), min(a.basis.shape[1], b.basis.shape[1])
    if k == 0:
        return []
    angles = principal_angles(a.basis[:, :k], b.basis[:, :k])
    return [
        {"k": k, "dimension": dimension, "index": i, "angle_degrees": float(angle), "null_degrees": float(null)}
        for i, (angle, null) in enumerate(zip(angles, null_angles(a, b, k), strict=True))
    ]
