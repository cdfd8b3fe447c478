"""Intruder dimensions: leading directions of tuned weights that the base's weights do not have.

After "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (Shuttleworth et al., arXiv 2410.21228), section 3: a
leading left singular vector of W + D is an intruder if its largest absolute cosine to any left singular vector of W is
below a threshold.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raygeo.geometry.weights import linalg
from raygeo.models.delta import Dense


@dataclass(frozen=True)
class Leading:
    """The k leading left singular vectors of W + D, each [k] fp64, by descending singular value.

    ``likeness`` is the largest absolute cosine to a left singular vector of W, ``energy`` the squared norm of D along
    the vector, |u' D|^2; the energies add up to at most |D|_F^2.
    """

    likeness: Tensor
    energy: Tensor

    def intruders(self, epsilon: float) -> Tensor:
        """Mask [k] of those whose likeness is below ``epsilon``."""
        return self.likeness < epsilon


def left_vectors(weight: Tensor) -> Tensor:
    """All left singular vectors of ``weight`` [out, in]: [out, min(out, in)], fp64.

    Raises:
        DeltaError: the weights are not finite.
    """
    return linalg.svd(Dense(weight))[0]


def leading(before: Tensor, weight: Tensor, delta: Tensor, k: int) -> Leading:
    """Compare the ``k`` leading left singular vectors of ``weight + delta`` [out, in] with ``before``.

    ``before`` are those of ``weight`` (``left_vectors``). The sum is taken in fp64.

    Raises:
        DeltaError: the sum is not finite.
    """
    wide = delta.double()
    u, _, _ = linalg.svd(Dense(weight.double() + wide), k)
    return Leading((u.T @ before).abs().amax(dim=1), torch.linalg.vector_norm(u.T @ wide, dim=1).square())
