"""How much a loss rises near some weights, at worst within a ball and on average under noise.

Every measure is the loss at a neighbour of the weights minus the loss at the weights; none is divided by a radius.
"""

import numpy as np
import torch
from torch import Tensor

from raygeo.geometry.curvature import long
from raygeo.geometry.curvature.draws import named_generator
from raygeo.geometry.curvature.landscape import Landscape
from raygeo.geometry.curvature.trace import Estimate, estimate


def ball(landscape: Landscape, radius: float, steps: int) -> tuple[float, float]:
    """The rise of the loss after one ascent step to the surface of the ball |e| <= ``radius``, and the largest rise
    along ``steps`` projected ones.

    The first is SAM's, e = radius g / |g| (Foret et al. 2021, arXiv:2010.01412, equation 2). Each further step adds
    radius g / |g| with the gradient there and goes back to the ball; where the maximum lies on the surface it is a
    fixed point, as its gradient is parallel to e. Both are lower bounds of the maximum over the ball. Where the
    gradient vanishes there is no direction to step in and the rise is that of staying.
    """
    offset, start = torch.zeros_like(landscape.weights), landscape.loss(torch.zeros_like(landscape.weights))
    rises = []
    for _ in range(steps):
        gradient = landscape.gradient(offset)
        norm = long.norm(gradient)
        if norm > 0:
            offset = offset + radius / norm * gradient
            offset = offset * min(1.0, radius / long.norm(offset))
        rises.append(landscape.loss(offset) - start)
    return rises[0], float(np.max(rises))


def adaptive_ball(landscape: Landscape, radius: float) -> float:
    """The rise after one step to the surface of ASAM's ellipsoid |e / |w|| <= ``radius``, w being the weights.

    e = radius w^2 g / | |w| g |, elementwise (Kwon et al. 2021, arXiv:2102.11600, with elementwise
    normalisation and without a stabiliser), so it does not change when weights are rescaled without changing the model;
    weights that are zero stay zero.
    """
    zero = torch.zeros_like(landscape.weights)
    scaled = landscape.weights.abs() * landscape.gradient(zero)
    norm = long.norm(scaled)
    if norm == 0:
        return 0.0
    return landscape.loss(radius / norm * landscape.weights.abs() * scaled) - landscape.loss(zero)


def average(landscape: Landscape, scales: Tensor, draws: int, seed: int) -> Estimate:
    """Mean rise under independent normal noise with standard deviations ``scales`` [n].

    Each of the ``draws`` is a pair of opposite offsets, whose mean has no first-order term, so that a quadratic rises
    by half of e'He. The draws depend on the seed alone.
    """
    zero = torch.zeros_like(landscape.weights)
    start, rises = landscape.loss(zero), []
    for draw in range(draws):
        noise = torch.randn(len(zero), generator=named_generator("noise", seed, draw)).to(zero) * scales
        rises.append((landscape.loss(noise) + landscape.loss(-noise)) / 2 - start)
    return Estimate(*map(float, estimate(np.array(rises))))


def layer_scales(landscape: Landscape) -> Tensor:
    """Root mean square of the parameter that each weight belongs to, [n]."""
    parts = landscape.weights.split(landscape.sizes)
    return torch.cat([part.new_tensor(long.norm(part) / len(part) ** 0.5).expand(len(part)) for part in parts])
