"""The way of one run through the space of its weights, by the deltas that it kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.difference import difference
from raygeo.models.delta import Entry


@dataclass(frozen=True)
class Trajectory:
    """What is known of T deltas of one run, each [T] fp64; NaN where it would be divided by zero.

    ``cosine_final`` is to the last delta. ``distance`` is from the delta before, for the first from the base;
    ``path_length`` is the sum of the distances so far, a lower bound of the way travelled, as a chord is of its arc;
    ``straightness`` is norm over path length, and ``cosine_previous`` the cosine of the last move to the one before.
    """

    norm: np.ndarray
    cosine_final: np.ndarray
    distance: np.ndarray
    path_length: np.ndarray
    straightness: np.ndarray
    cosine_previous: np.ndarray


def trajectory(deltas: Sequence[Mapping[str, Entry]]) -> Trajectory:
    """Follow deltas of one run, in order of time.

    Each maps the same names of parameters to entries. Of full deltas a block of rows of one parameter is in memory at a
    time, of LoRA deltas the factors of five entries; none is multiplied out.

    Raises:
        DeltaError: two entries of a parameter differ in kind, shape, rank or scale, or one is not finite.
    """
    final = deltas[-1]
    energy, along, moved, turned = np.zeros((4, len(deltas)))
    for name in final:
        end = final[name]
        entry: Entry | None = None
        move: Entry | None = None
        for i, delta in enumerate(deltas):
            last_entry, last_move = entry, move
            entry = end if delta is final else delta[name]
            move = entry if last_entry is None else difference(entry, last_entry)
            products = linalg.gram([entry, end, move, *([last_move] if last_move is not None else [])])
            energy[i] += products[0, 0].item()
            along[i] += products[0, 1].item()
            moved[i] += products[2, 2].item()
            if last_move is not None:
                turned[i] += products[2, 3].item()
    norm, distance = np.sqrt(energy.clip(min=0)), np.sqrt(moved.clip(min=0))
    path = distance.cumsum()
    return Trajectory(
        norm=norm,
        cosine_final=_ratio(along, np.sqrt(energy * energy[-1])).clip(-1, 1),
        distance=distance,
        path_length=path,
        straightness=_ratio(norm, path),
        cosine_previous=_ratio(turned, distance * np.append(0, distance[:-1])).clip(-1, 1),
    )


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
