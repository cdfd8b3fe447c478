"""Linear mode connectivity: losses along the straight line between the weights of two runs.

A point of the path is ``base + (1 - alpha) delta_a + alpha delta_b``, taken on merged weights (LoRA factors are
multiplied out first: mixing ``A`` and ``B`` apart would add cross terms). The base is an end like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raygeo.data.probes import Probe
from raygeo.geometry.bootstrap import Array
from raygeo.geometry.connectivity.barriers import check_finite, headroom
from raygeo.geometry.connectivity.measures import Measure, Metric, ProbeNLL
from raygeo.geometry.connectivity.mixtures import mixture
from raygeo.models.delta import Entry
from raygeo.models.mix import MixedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Path:
    """What was measured along a path, fp64.

    ``alphas`` [A] increase; ``sums`` [A, N] are losses of N examples at each alpha, summed over what ``counts`` [N]
    counts: nats over tokens for texts, errors over ones for problems.
    """

    alphas: Array
    sums: Array
    counts: Array

    @property
    def means(self) -> Array:
        """The loss at each alpha, [A]: nats a token, or the error rate."""
        return self.sums.sum(1) / self.counts.sum()

    def between(self) -> Path:
        """The part from 0 to 1, which barriers are of."""
        inside = (self.alphas >= 0) & (self.alphas <= 1)
        return Path(self.alphas[inside], self.sums[inside], self.counts)


def straight_path(
    model: PreTrainedModel,
    a: Mapping[str, Entry] | None,
    b: Mapping[str, Entry] | None,
    probe: Probe,
    *,
    points: int = 11,
    refine: int = 8,
    tolerance: float = 1e-3,
    batch_size: int = 16,
    pad_id: int = 0,
) -> Path:
    """The NLL of a probe along the straight line from base + a to base + b, nats a token.

    Give its ``alphas`` and ``means`` to ``barrier``, its ``alphas``, ``sums`` and ``counts`` to ``barrier_intervals``.

    Args:
        model: the base (``load_student``); it has its own weights again in the end, bit for bit.
        a: the delta at alpha = 0 (``open_delta``), or None for the base itself.
        b: the delta at alpha = 1, or None.
        probe: N texts (``Probe.of``); every completion token counts once, its end-of-text included.
        points: evenly spaced values of alpha, both ends included; at least 3.
        refine: at most so many further values, each where a barrier might still rise most (``headroom``).
        tolerance: nats; refining stops once no barrier can rise by more, as far as the path's bends tell.
        batch_size: sequences per forward pass.
        pad_id: any token id, which batches are padded with.

    Raises:
        DeltaError: a delta does not fit the model, or the loss is not finite somewhere.
        ValueError: there are fewer than 3 points.
    """
    measured = ProbeNLL(probe, batch_size, pad_id)
    weights = MixedWeights(model, {name for delta in (a, b) if delta is not None for name in delta})

    def at(alpha: float, measures: Sequence[Measure]) -> list[Array]:
        with weights.mixed(mixture((1 - alpha, a), (alpha, b))):
            return [measure.sums(model) for measure in measures]

    if points < 3:
        raise ValueError(f"a path of {points} points has no inside; take at least 3")
    grid = np.linspace(0, 1, points).tolist()
    [path] = trace_paths(at, [measured], {"nll": grid}, refine=refine, tolerance=tolerance)
    check_finite(path.means, "on the path")
    return path


def trace_paths(
    at: Callable[[float, Sequence[Measure]], list[Array]],
    measures: Sequence[Measure],
    grids: Mapping[Metric, Sequence[float]],
    *,
    refine: int,
    tolerance: float,
) -> list[Path]:
    """Follow several measures along one line; those of likelihood share one grid, which is refined for all of them.

    Args:
        at: gives the sums [N] of each of some measures at one alpha.
        measures: what is measured.
        grids: where each metric is always measured, 0 and 1 included.
        refine: at most so many further values of alpha for likelihoods, each in the middle of the gap where a barrier
            might still rise most.
        tolerance: refining stops when no barrier can rise by more than this, as far as ``headroom`` tells.

    Returns:
        The path of each measure.
    """
    found: list[dict[float, Array]] = [{} for _ in measures]

    def measure(alpha: float, which: Sequence[int]) -> None:
        for i, sums in zip(which, at(alpha, [measures[i] for i in which]), strict=True):
            found[i][alpha] = sums

    def path(i: int) -> Path:
        alphas = sorted(found[i])
        return Path(np.array(alphas), np.stack([found[i][alpha] for alpha in alphas]), measures[i].counts)

    for alpha in sorted({alpha for each in measures for alpha in grids[each.metric]}):
        measure(alpha, [i for i, each in enumerate(measures) if alpha in grids[each.metric]])
    likelihoods = [i for i, each in enumerate(measures) if each.metric == "nll"]
    for _ in range(refine if likelihoods else 0):
        inside = [path(i).between() for i in likelihoods]
        alphas = inside[0].alphas
        room = headroom(alphas, np.stack([each.means for each in inside]))
        gap = int(room.argmax())
        if room[gap] <= tolerance:
            break
        measure(float(alphas[gap] + alphas[gap + 1]) / 2, likelihoods)
    return [path(i) for i in range(len(measures))]
