"""The kernels of every run on a probe's texts, made once an actor: what CKA within and between layers starts from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor, nn

from raygeo.data.probes import Probe
from raygeo.errors import DataError, DeltaError
from raygeo.geometry.representation.cka import minibatches
from raygeo.geometry.representation.features import PLAIN, Pool, Treatment, chosen_tokens, text_features
from raygeo.geometry.representation.kernels import Kernels, outliers
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath


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


KEPT_BYTES = 4 * 2**30
"""Most bytes of kernels that an actor keeps, those of two runs at least."""


@dataclass
class Representations:
    """The resident base model, a probe's texts, and the kernels of the runs last asked for.

    Kernels take ``24 (L + 1) n^2`` bytes a run: 233 MB for 36 layers and 512 vectors, at any width. Beyond
    ``KEPT_BYTES`` those asked for longest ago are dropped, and made again when they are asked for. The features
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
        student = ResidentStudent.load(base, runs)
        return cls(settings, student.weights, comparable(probe), student.pad_id)

    @property
    def batches(self) -> list[Tensor]:
        """Rows of each minibatch."""
        settings, texts = self.settings, self.probe.sequences
        counts = [1] * len(texts)
        if settings.pool == "tokens":
            chosen = chosen_tokens(texts, settings.pool, settings.tokens_per_text, settings.seed)
            counts = [len(places) for places in chosen]
        return minibatches(counts, settings.batch_size, settings.seed)

    def kernels(self, run: Run) -> Kernels:
        """Kernels of a run, computed unless they are kept.

        Raises:
            DeltaError: its hidden states are not finite.
        """
        if run in self.known:
            self.known[run] = self.known.pop(run)
        else:
            if self._outliers is None:
                with self.weights.unmixed() as model:
                    self._outliers = outliers(self._features(model, "the base")[PLAIN], self.settings.outlier_factor)
            with self.weights.mixed(run.mixture()) as model:
                features = self._features(model, run.name)
            features["without_outliers"] = features[PLAIN].masked_fill(self._outliers[:, None], 0.0)
            self.known[run] = Kernels.of(features)
            while len(self.known) > 2 and sum(kernels.nbytes for kernels in self.known.values()) > KEPT_BYTES:
                del self.known[next(iter(self.known))]
        return self.known[run]

    def _features(self, model: nn.Module, name: str) -> dict[Treatment, Tensor]:
        settings = self.settings
        features = text_features(
            model,
            self.probe.sequences,
            pool=settings.pool,
            tokens_per_text=settings.tokens_per_text,
            seed=settings.seed,
            batch_size=settings.forward_batch_size,
            pad_id=self.pad_id,
        )
        if not bool(torch.isfinite(features[PLAIN]).all()):
            raise DeltaError(f"the hidden states of {name} are not finite; it diverged, leave it out.")
        return features
