"""What moved between two deltas of one run, without multiplying LoRA factors out."""

from typing import Any

import torch

from raygeo.errors import DeltaError
from raygeo.models.delta import Dense, Difference, Entry, LowRank


def difference(later: Entry, earlier: Entry) -> Entry:
    """``later - earlier`` in fp64, for entries of one run.

    LoRA factors are not multiplied out: B1 A1 - B0 A0 = [B1 - B0, B0] [A1; A1 - A0]. Every term is as small as the
    move is, so its norm has a relative error of about 1e-14 even where the difference of the squared norms of two far
    but close points would have lost all digits.

    Raises:
        DeltaError: the entries differ in kind, shape, rank or scale.
    """
    if isinstance(later, Dense) and isinstance(earlier, Dense) and later.shape == earlier.shape:
        return Dense(Difference(later.source, earlier.source, torch.float64))
    if isinstance(later, LowRank) and isinstance(earlier, LowRank) and _layout(later) == _layout(earlier):
        b, a = earlier.b.double(), later.a.double()
        return LowRank(torch.cat([later.b.double() - b, b], dim=1), torch.cat([a, a - earlier.a.double()]), later.scale)
    raise DeltaError("two deltas kept by one run do not have the same format; delete its snapshots and train it again.")


def _layout(entry: LowRank) -> tuple[Any, ...]:
    return entry.b.shape, entry.a.shape, entry.scale
