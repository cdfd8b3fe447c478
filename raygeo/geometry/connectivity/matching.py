"""How far along its own line from the base a run is as far from it as another run."""

import math
from collections.abc import Callable

from scipy.optimize import brentq

from raygeo.errors import DeltaError

STEPS = 20
"""Most steps of the search inside its bracket."""


class Unreachable(DeltaError):
    """A line from the base has no point at the wanted distance, and why."""


def scale_for(distance: Callable[[float], float], target: float, *, most: float, tolerance: float) -> float:
    """The scale in (0, ``most``] at which ``distance`` is ``target``, to a share ``tolerance`` of it.

    ``distance`` is 0 at scale 0 and grows about as its square from there, as a divergence from the base does; it is its
    square root that is followed, which is nearly straight. It is asked at 1 first, at twice the scale for as long as it
    is too small, and then where Brent's method says (Brent 1973, Algorithms for Minimization without Derivatives,
    chapter 4). Where it is the target at several scales, one of them is found.

    Raises:
        Unreachable: it is less up to scale ``most``, not finite, or not found in ``STEPS`` steps.
    """
    known: dict[float, float] = {0.0: -1.0}

    def excess(scale: float) -> float:
        if scale not in known:
            found = distance(scale)
            if not math.isfinite(found):
                raise Unreachable(f"its predictions are not finite at scale {scale:.3g}")
            ratio = max(found, 0.0) / target
            known[scale] = 0.0 if abs(ratio - 1) <= tolerance else math.sqrt(ratio) - 1
        return known[scale]

    low, high = 0.0, min(1.0, most)
    while excess(high) < 0:
        if high == most:
            reached = target * (1 + excess(high)) ** 2
            raise Unreachable(f"at scale {most:g}, the largest that is tried, it is at {reached:.3g} of {target:.3g}")
        low, high = high, min(2 * high, most)
    if excess(high) == 0:
        return high
    scale = float(brentq(excess, low, high, maxiter=STEPS, full_output=True, disp=False)[0])
    if excess(scale) != 0:
        raise Unreachable(f"no scale was found in {STEPS} steps between {low:.3g} and {high:.3g}")
    return scale
