"""Linear kernels of features, and what is taken out of them: massive dimensions, leading principal components."""

from dataclasses import dataclass

import torch
from torch import Tensor

from raygeo.geometry.representation.features import PLAIN, Treatment

_CONSTANT = 1e-6
_COMPONENTS: dict[Treatment, int] = {"without_1_pc": 1, "without_3_pcs": 3}


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

    The root mean square is not centred: massive activations (Sun et al., arXiv:2402.17762) are nearly constant over
    tokens.
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

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(values.nbytes for values in (*self.grams.values(), self.values, self.vectors))

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
