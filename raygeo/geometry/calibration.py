"""How far a model's confidence in its next token is from how often it is right: the expected calibration error."""

import torch
from torch import Tensor

BINS = 15


def binned_gaps(probabilities: Tensor, correct: Tensor, bins: int = BINS) -> Tensor:
    """Sum confidence minus correctness over the last axis, apart in ``bins`` of equal width: [..., T] to [..., bins].

    The bins are (i / bins, (i + 1) / bins], as in Guo et al., arXiv:1706.04599, section 2. Positions where
    ``probabilities`` is 0 add nothing.
    """
    places = ((probabilities * bins).ceil().long() - 1).clamp(0, bins - 1)
    gaps = torch.zeros(*probabilities.shape[:-1], bins, dtype=torch.float64, device=probabilities.device)
    return gaps.scatter_add(-1, places, torch.where(probabilities > 0, probabilities - correct, 0.0).double())


def expected_calibration_error(probabilities: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Mean over items of |share right - mean confidence| of the item's bin (equation 3 there), both given as [N]."""
    return float(binned_gaps(probabilities, correct, bins).abs().sum() / len(probabilities))


def top_confidence(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Largest probability of ``logits`` [N, V], and whether it is that of ``targets`` [N]: [N] fp64 each."""
    top, guess = logits.log_softmax(-1).max(-1)
    return top.double().exp(), (guess == targets).double()
