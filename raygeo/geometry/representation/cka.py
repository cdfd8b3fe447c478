"""Centred kernel alignment of hidden states: how alike two runs represent the same texts, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from pydantic import Field
from scipy import stats
from torch import Tensor

from raygeo.geometry.representation.features import (
    TREATMENTS,
    FeatureSettings,
    Representations,
    Treatment,
    comparable,
)
from raygeo.settings import content_key
from raygeo.store import AnyPath
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload


class CKASettings(FeatureSettings):
    """What is compared, over which minibatches, and what is taken out of the features first."""

    treatments: tuple[Treatment, ...] = Field(TREATMENTS, min_length=1)
    """Rows are made for each: ``plain`` features; ``rms_normed``, every token's state divided by its root mean square;
    ``without_outliers``, without the dimensions of massive activations; ``without_1_pc`` and ``without_3_pcs``, without
    the leading principal components of each model's own features. Few dimensions dominate plain CKA of language
    models."""


@dataclass(frozen=True)
class Alignment:
    """CKA of one pair at one layer; null where a model gives all texts the same features.

    ``cka`` is the unbiased minibatch estimate, in [-1, 1], and ``low`` to ``high`` its 95 % interval (null with one
    minibatch); ``biased`` is the plain estimate over all texts, in [0, 1].
    """

    cka: float | None
    biased: float | None
    low: float | None
    high: float | None


def hsic1(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased HSIC of two kernels [..., n, n] over the same n >= 4 examples (Song et al., JMLR 2012; HSIC_1): [...].

    With zeroed diagonals, ``[tr(KM) + 1'K1 1'M1 / ((n-1)(n-2)) - 2 1'KM1 / (n-2)] / (n(n-3))``. Unchanged by centring.

    Raises:
        ValueError: n < 4.
    """
    n = k.shape[-1]
    if n < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 examples, not {n}")
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, m = k * off, m * off
    sums_k, sums_m = k.sum(-1), m.sum(-1)
    means = sums_k.sum(-1) * sums_m.sum(-1) / ((n - 1) * (n - 2))
    return ((k * m).sum((-2, -1)) + means - 2 * (sums_k * sums_m).sum(-1) / (n - 2)) / (n * (n - 3))


def align(k: Tensor, m: Tensor, batches: Sequence[Tensor]) -> list[Alignment]:
    """Align centred kernels ``k`` with ``m`` [L, n, n] of the same examples, layer by layer (either L may be 1).

    The estimate is minibatch CKA (Nguyen et al., arXiv:2010.15327, eq. 3): ``hsic1`` of (k, m), (k, k) and (m, m) is
    averaged over ``batches`` first, then the ratio is taken. Its 95 % interval is the delete-one-minibatch jackknife
    with Student's t, cut to [-1, 1]. The biased value is ``<K, M> / (|K| |M|)`` over all examples (Kornblith et al.,
    arXiv:1905.00414), near 1 for any two features when n is not much larger than their dimension.
    """
    norms = k.norm(dim=(-2, -1)) * m.norm(dim=(-2, -1))
    biased = torch.stack([(x * y).sum() for x, y in zip(*torch.broadcast_tensors(k, m), strict=True)]) / norms
    parts = [(k[:, rows][..., rows], m[:, rows][..., rows]) for rows in batches]
    terms = [torch.broadcast_tensors(hsic1(x, y), hsic1(x, x), hsic1(y, y)) for x, y in parts]
    layers = torch.stack([torch.stack(part, -1) for part in terms], 1).numpy()  # [L, batches, 3]
    return [
        Alignment(None, None, None, None) if norm == 0 else _alignment(layer, whole)
        for layer, whole, norm in zip(layers, biased.tolist(), norms.tolist(), strict=True)
    ]


def _alignment(terms: np.ndarray, biased: float) -> Alignment:
    """The estimate and its interval from the three terms of each minibatch [batches, 3]."""
    value = _ratio(terms.sum(0))
    without = [_ratio(terms.sum(0) - part) for part in terms]
    if value is None or len(terms) < 2 or None in without:
        return Alignment(value, biased, None, None)
    error = np.sqrt((len(terms) - 1) * np.var(np.array(without, dtype=np.float64)))
    half = float(stats.t.ppf(0.975, len(terms) - 1) * error)
    return Alignment(value, biased, max(value - half, -1.0), min(value + half, 1.0))


def _ratio(terms: np.ndarray) -> float | None:
    cross, first, second = terms.tolist()
    return None if min(first, second) <= 0 else min(1.0, max(-1.0, cross / (first * second) ** 0.5))


class CKA(Workload):
    """CKA of every pair of runs at every layer, on one probe's teacher-forced texts; one task a pair.

    An actor computes the features of a run once and keeps only its kernels (see ``Representations``).

    Args:
        settings: pooling, minibatches and treatments.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.

    Raises:
        DataError: the probe has fewer than 4 sequences.
    """

    name = "cka"
    tables = ("cka",)

    def __init__(self, settings: CKASettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath):
        self.settings = settings
        self.runs = sorted(runs, key=lambda run: run.delta is not None)
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a pair; all cost the same."""
        inputs = content_key(self.settings, comparable(self.probe).key)
        return [
            Task(
                content_key(self.name, inputs, [[run.name, run.key] for run in (a, b)]),
                1.0,
                (a, b),
                f"CKA of {a.name} and {b.name}",
            )
            for a, b in combinations(self.runs, 2)
        ]

    def setup(self) -> Representations:
        """Load the base student and the probe once."""
        return Representations.open(self.settings, self.runs, self.base, self.probe)

    def compute(self, state: Representations, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Align one pair at every layer under every treatment."""
        first, second = (state.kernels(run) for run in payload)
        batches = state.batches
        rows: Rows = []
        for treatment in self.settings.treatments:
            kernels = first.treated(treatment), second.treated(treatment)
            for layer, found in enumerate(align(*kernels, batches)):
                rows.append(
                    {
                        "run_a": payload[0].name,
                        "run_b": payload[1].name,
                        "layer": layer,
                        "treatment": treatment,
                        "cka": found.cka,
                        "cka_biased": found.biased,
                        "low": found.low,
                        "high": found.high,
                        "n": kernels[0].shape[-1],
                    }
                )
        return {"cka": rows}
