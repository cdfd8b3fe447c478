"""Centred kernel alignment of hidden states: how alike two runs represent the same texts, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy import stats
from torch import Tensor, nn

from raygeo.errors import DataError, DeltaError
from raygeo.geometry.probes import Probe
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.encoding import Batch
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

Pool = Literal["mean_completion", "last_prompt"]

_CONSTANT = 1e-6


class CKASettings(Settings):
    """What is compared, and over which minibatches."""

    pool: Pool = "mean_completion"
    """One vector a text: the mean over its completion tokens, or the last prompt token (the same for all texts at layer
    0 when all prompts end alike, hence null there)."""
    batch_size: int = Field(32, ge=4)
    """Least number of texts in a minibatch of the unbiased estimate; at least 4, below which it does not exist."""
    seed: int = 0
    """Seed of the shuffling of texts into minibatches, the same for all pairs."""
    forward_batch_size: int = Field(16, ge=1)
    """Texts per forward pass; has no effect on the numbers beyond rounding."""


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


def gram(features: Tensor) -> Tensor:
    """Linear kernel [..., n, n] of ``features`` [..., n, d] centred over n, in fp64.

    Exactly zero where the features differ from their mean by no more than rounding (1e-6 of their norm), so that a
    ratio of rounding errors is never taken for a similarity.
    """
    x = features.double()
    centred = x - x.mean(-2, keepdim=True)
    varies = centred.norm(dim=(-2, -1), keepdim=True) > _CONSTANT * x.norm(dim=(-2, -1), keepdim=True)
    centred = torch.where(varies, centred, torch.zeros_like(centred))
    return centred @ centred.mT


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


def minibatches(n: int, batch_size: int, seed: int) -> list[Tensor]:
    """Shuffle ``n`` examples into disjoint minibatches of equal size (to within one), none below ``batch_size``.

    Fewer examples than ``batch_size`` make one minibatch.
    """
    order = np.random.default_rng(seed).permutation(n)
    return [torch.from_numpy(part) for part in np.array_split(order, max(1, n // batch_size))]


def align(k: Tensor, m: Tensor, batches: Sequence[Tensor]) -> Alignment:
    """Align two centred kernels ``k`` and ``m`` [n, n] of the same examples.

    The estimate is minibatch CKA (Nguyen et al., arXiv:2010.15327, eq. 3): ``hsic1`` of (k, m), (k, k) and (m, m) is
    averaged over ``batches`` first, then the ratio is taken. Its 95 % interval is the delete-one-minibatch jackknife
    with Student's t, cut to [-1, 1]. The biased value is ``<K, M> / (|K| |M|)`` over all examples (Kornblith et al.,
    arXiv:1905.00414), near 1 for any two features when n is not much larger than their dimension.
    """
    norms = k.norm() * m.norm()
    if norms == 0:
        return Alignment(None, None, None, None)
    biased = float((k * m).sum() / norms)
    parts = [(k[rows][:, rows], m[rows][:, rows]) for rows in batches]
    terms = torch.stack([torch.stack([hsic1(x, y), hsic1(x, x), hsic1(y, y)]) for x, y in parts]).numpy()
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


@torch.inference_mode()
def hidden_features(model: nn.Module, batch: Batch, pool: Pool) -> Tensor:
    """Pooled hidden states [L + 1, B, d], fp32 on the CPU.

    Layer 0 is the embeddings, layer L the last block after the final norm. ``mean_completion`` averages over the
    positions of completion tokens, ``last_prompt`` takes the position before them.
    """
    batch = batch.to(next(model.parameters()).device)
    states = model.base_model(  # type: ignore[operator]
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, output_hidden_states=True
    ).hidden_states
    if pool == "last_prompt":
        rows = torch.arange(len(batch.mask), device=batch.mask.device)
        position = batch.mask.int().argmax(-1)
        return torch.stack([state[rows, position].float() for state in states]).cpu()
    share = torch.nn.functional.pad(batch.mask.float() / batch.mask.sum(-1, keepdim=True), (1, 0))
    return torch.stack([torch.einsum("bt,btd->bd", share, state.float()) for state in states]).cpu()


@dataclass
class _State:
    weights: MixedWeights
    order: list[list[int]]
    inputs: list[Batch]
    batches: list[Tensor]
    grams: dict[Run, Tensor] = field(default_factory=dict)


class CKA(Workload):
    """CKA of every pair of runs at every layer, on one probe's teacher-forced texts; one task a pair.

    An actor computes the features of a run once and keeps only its kernels, ``8 (L + 1) n^2`` bytes: 78 MB a run for 36
    layers and 512 texts, at any width. The features themselves (fp32, ``4 (L + 1) n d`` bytes, 194 MB there at width
    2560) live only while the kernels are made.

    Args:
        settings: pooling and minibatches.
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
        probe = Probe.load(self.probe)
        if len(probe.sequences) < 4:
            raise DataError(
                f"probe {probe.name!r} has {len(probe.sequences)} sequences; CKA needs at least 4, better hundreds."
            )
        inputs = content_key(self.settings, probe.key)
        return [
            Task(
                content_key(self.name, inputs, [[run.name, run.key] for run in (a, b)]),
                1.0,
                (a, b),
                f"CKA of {a.name} and {b.name}",
            )
            for a, b in combinations(self.runs, 2)
        ]

    def setup(self) -> _State:
        """Load the base student and tokenised texts once."""
        model, tokenizer = load_student(self.base, device=default_device())
        opened = [delta for run in self.runs if (delta := run.open()) is not None]
        probe, size = Probe.load(self.probe), self.settings.forward_batch_size
        return _State(
            MixedWeights(model, {name for delta in opened for name in delta}),
            probe.order(size),
            probe.batches(tokenizer.pad_token_id, size),
            minibatches(len(probe.sequences), self.settings.batch_size, self.settings.seed),
        )

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Align one pair at every layer."""
        a, b = payload
        rows = []
        for layer, (k, m) in enumerate(zip(self._grams(state, a), self._grams(state, b), strict=True)):
            found = align(k, m, state.batches)
            rows.append(
                {
                    "run_a": a.name,
                    "run_b": b.name,
                    "layer": layer,
                    "cka": found.cka,
                    "cka_biased": found.biased,
                    "low": found.low,
                    "high": found.high,
                    "n": len(k),
                }
            )
        return {"cka": rows}

    def _grams(self, state: _State, run: Run) -> Tensor:
        if run not in state.grams:
            with state.weights.mixed(run.mixture()) as model:
                parts = [hidden_features(model, batch, self.settings.pool) for batch in state.inputs]
            features = torch.cat(parts, dim=1)
            if not bool(torch.isfinite(features).all()):
                raise DeltaError(f"the hidden states of {run.name} are not finite; it diverged, leave it out.")
            back = torch.argsort(torch.tensor([i for rows in state.order for i in rows]))
            state.grams[run] = torch.stack([gram(layer[back]) for layer in features])
        return state.grams[run]
