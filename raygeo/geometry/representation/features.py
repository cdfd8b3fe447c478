"""Hidden states as features: which tokens are looked at, what is taken out of them, and the kernels that remain."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from raygeo.errors import DataError, DeltaError
from raygeo.geometry.probes import Probe
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.students.encoding import Batch
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run

Pool = Literal["mean_completion", "last_prompt", "tokens"]
Treatment = Literal["plain", "rms_normed", "without_outliers", "without_1_pc", "without_3_pcs"]
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)
PLAIN: Treatment = "plain"

_CONSTANT = 1e-6
_COMPONENTS: dict[Treatment, int] = {"without_1_pc": 1, "without_3_pcs": 3}


class FeatureSettings(Settings):
    """Which hidden states become features, and over which minibatches they are compared."""

    pool: Pool = "mean_completion"
    """``mean_completion``: one vector a text, the mean over its completion tokens. ``last_prompt``: one vector a text,
    its last prompt token (the same for all texts at layer 0 when all prompts end alike, hence null there). ``tokens``:
    ``tokens_per_text`` completion tokens of every text, each a vector."""
    tokens_per_text: int = Field(4, ge=1)
    """Completion tokens drawn from each text where ``pool`` is ``tokens``; all of them where it has fewer."""
    batch_size: int = Field(32, ge=4)
    """Least number of texts in a minibatch of the unbiased estimate; at least 4, below which it does not exist. Tokens
    of one text stay together."""
    outlier_factor: float = Field(5.0, gt=1)
    """``without_outliers`` leaves out dimensions whose root mean square in the base exceeds so many times the median
    dimension's, layer by layer; the same dimensions for all runs."""
    seed: int = 0
    """Seed of the draw of tokens and of the shuffling of texts into minibatches, the same for all pairs."""
    forward_batch_size: int = Field(16, ge=1)
    """Texts per forward pass; has no effect on the numbers beyond rounding."""


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


def outliers(features: Tensor, factor: float) -> Tensor:
    """Mark dimensions of ``features`` [..., n, d] whose root mean square over n exceeds ``factor`` medians: [..., d].

    The root mean square is not centred: massive activations are nearly constant over tokens.
    """
    rms = features.double().square().mean(-2).sqrt()
    return rms > factor * rms.median(-1, keepdim=True).values


@dataclass(frozen=True)
class Kernels:
    """What is kept of a run: centred kernels of its features and their leading components, fp64 on the CPU.

    ``grams`` hold [L + 1, n, n] for each treatment of single tokens or dimensions; ``values`` [L + 1, 3] and
    ``vectors`` [L + 1, n, 3] are the three largest eigenpairs of the plain kernels.
    """

    grams: dict[Treatment, Tensor]
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, features: dict[Treatment, Tensor]) -> "Kernels":
        """Make kernels of features [L + 1, n, d], one layer at a time."""
        grams = {name: torch.stack([gram(layer) for layer in values]) for name, values in features.items()}
        pairs = [torch.linalg.eigh(k) for k in grams[PLAIN]]
        top = max(_COMPONENTS.values())
        return cls(
            grams,
            torch.stack([values.flip(0)[:top] for values, _ in pairs]),
            torch.stack([vectors.flip(1)[:, :top] for _, vectors in pairs]),
        )

    def treated(self, treatment: Treatment) -> Tensor:
        """Kernels [L + 1, n, n] under a treatment.

        Without its k leading principal components, a kernel loses its k largest eigenvalues: the kernel of the centred
        features projected away from their k leading right singular vectors. Zero where only rounding would be left.
        """
        if treatment not in _COMPONENTS:
            return self.grams[treatment]
        k = _COMPONENTS[treatment]
        whole, vectors = self.grams[PLAIN], self.vectors[..., :k]
        rest = whole - (vectors * self.values[:, None, :k]) @ vectors.mT
        left = rest.diagonal(dim1=-2, dim2=-1).sum(-1)
        varies = left > _CONSTANT**2 * whole.diagonal(dim1=-2, dim2=-1).sum(-1)
        return torch.where(varies[:, None, None], rest, torch.zeros_like(rest))


def chosen_tokens(probe: Probe, settings: FeatureSettings) -> list[Tensor]:
    """Positions of the tokens of each text whose hidden states are looked at, ascending."""
    generator = np.random.default_rng(settings.seed)
    chosen = []
    for s in probe.sequences:
        if settings.pool == "last_prompt":
            places = np.array([s.prompt_length - 1])
        else:
            places = np.arange(s.prompt_length, len(s))
            if settings.pool == "tokens" and len(places) > settings.tokens_per_text:
                places = np.sort(generator.choice(places, settings.tokens_per_text, replace=False))
        chosen.append(torch.from_numpy(places))
    return chosen


@torch.inference_mode()
def hidden_states(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Hidden states [B, T + 1, d] of the embeddings and of every block, the last one after the final norm."""
    batch = batch.to(next(model.parameters()).device)
    return model.base_model(  # type: ignore[operator]
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, output_hidden_states=True
    ).hidden_states


def hidden_features(model: nn.Module, batch: Batch, tokens: Sequence[Tensor], *, mean: bool) -> dict[Treatment, Tensor]:
    """Features [L + 1, M, d] of the chosen ``tokens`` of a batch (positions, a tensor a text), fp32 on the CPU.

    Layer 0 is the embeddings, layer L the last block after the final norm. With ``mean`` there is one row a text, the
    mean over its tokens, otherwise a row a token. ``rms_normed`` divides every token's state by its root mean square
    before any mean, as a norm without weights would.
    """
    states = hidden_states(model, batch)
    device = states[0].device
    rows = torch.cat([torch.full_like(places, row) for row, places in enumerate(tokens)]).to(device)
    places = torch.cat(list(tokens)).to(device)
    found: dict[Treatment, list[Tensor]] = {PLAIN: [], "rms_normed": []}
    for state in states:
        values = state[rows, places].float()
        rms = values.square().mean(-1, keepdim=True).sqrt()
        for name, layer in ((PLAIN, values), ("rms_normed", values / rms.clamp(min=torch.finfo(rms.dtype).tiny))):
            found[name].append((_means(layer, rows, len(tokens)) if mean else layer).cpu())
    return {name: torch.stack(layers) for name, layers in found.items()}


def _means(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Mean of ``values`` [N, d] over the tokens of each of ``count`` texts: [count, d]."""
    sums = torch.zeros(count, values.shape[-1], dtype=values.dtype, device=values.device).index_add_(0, rows, values)
    return sums / torch.bincount(rows, minlength=count)[:, None]


def minibatches(counts: Sequence[int], batch_size: int, seed: int) -> list[Tensor]:
    """Shuffle texts into disjoint minibatches of equal size (to within one), none below ``batch_size`` texts.

    ``counts`` are the rows of each text; a minibatch holds the rows of its texts. Fewer texts than ``batch_size`` make
    one minibatch.
    """
    rows = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    order = np.random.default_rng(seed).permutation(len(counts))
    parts = np.array_split(order, max(1, len(counts) // batch_size))
    return [torch.from_numpy(np.concatenate([rows[text] for text in part])) for part in parts]


def comparable(path: AnyPath) -> Probe:
    """Open a probe that is large enough for CKA.

    Raises:
        DataError: it has fewer than 4 sequences.
    """
    probe = Probe.load(path)
    if len(probe.sequences) < 4:
        raise DataError(
            f"probe {probe.name!r} has {len(probe.sequences)} sequences; CKA needs at least 4, better hundreds."
        )
    return probe


@dataclass
class Representations:
    """The resident base model, a probe's texts, and the kernels of every run met so far.

    Kernels take ``24 (L + 1) n^2`` bytes a run: 233 MB for 36 layers and 512 vectors, at any width. The features
    themselves (fp32, three times ``4 (L + 1) n d`` bytes, 582 MB there at width 2560) live only while they are made.
    """

    settings: FeatureSettings
    weights: MixedWeights
    probe: Probe
    pad_id: int
    known: dict[Run, Kernels] = field(default_factory=dict)
    _outliers: Tensor | None = None

    @classmethod
    def open(cls, settings: FeatureSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath) -> "Representations":
        """Load the base student and the probe once."""
        model, tokenizer = load_student(base, device=default_device())
        opened = [delta for run in runs if (delta := run.open()) is not None]
        weights = MixedWeights(model, {name for delta in opened for name in delta})
        return cls(settings, weights, comparable(probe), tokenizer.pad_token_id)

    @property
    def batches(self) -> list[Tensor]:
        """Rows of each minibatch."""
        counts = [len(places) for places in chosen_tokens(self.probe, self.settings)]
        pooled = [1] * len(counts) if self.settings.pool == "mean_completion" else counts
        return minibatches(pooled, self.settings.batch_size, self.settings.seed)

    def kernels(self, run: Run) -> Kernels:
        """Kernels of a run, computed when first asked for.

        Raises:
            DeltaError: its hidden states are not finite.
        """
        if run not in self.known:
            if self._outliers is None:
                with self.weights.unmixed() as model:
                    self._outliers = outliers(self._features(model, "the base")[PLAIN], self.settings.outlier_factor)
            with self.weights.mixed(run.mixture()) as model:
                features = self._features(model, run.name)
            features["without_outliers"] = features[PLAIN].masked_fill(self._outliers[:, None], 0.0)
            self.known[run] = Kernels.of(features)
        return self.known[run]

    def _features(self, model: nn.Module, name: str) -> dict[Treatment, Tensor]:
        """Features of all texts, in the probe's order."""
        size, tokens = self.settings.forward_batch_size, chosen_tokens(self.probe, self.settings)
        mean = self.settings.pool == "mean_completion"
        order, batches = self.probe.order(size), self.probe.batches(self.pad_id, size)
        parts = [
            hidden_features(model, batch, [tokens[text] for text in texts], mean=mean)
            for texts, batch in zip(order, batches, strict=True)
        ]
        texts = [text for batch in order for text in batch]
        rows = [text for text in texts for _ in range(1 if mean else len(tokens[text]))]
        back = torch.from_numpy(np.argsort(rows, kind="stable"))
        features = {name: torch.cat([part[name] for part in parts], dim=1)[:, back] for name in parts[0]}
        if not bool(torch.isfinite(features[PLAIN]).all()):
            raise DeltaError(f"the hidden states of {name} are not finite; it diverged, leave it out.")
        return features
