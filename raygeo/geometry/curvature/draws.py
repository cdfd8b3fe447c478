"""Random vectors that depend on a seed and a name alone: not on the device, on other draws, or on who draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raygeo.settings import content_key


def named_generator(*name: str | int) -> torch.Generator:
    """A CPU generator seeded by a hash of ``name``, so that streams of different names are independent."""
    return torch.Generator().manual_seed(int(content_key(*name), 16) >> 1)


def rademacher(
    n: int,
    k: int,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Independent signs +1 or -1, [n, k], drawn on the generator's device, so that they do not depend on ``device``."""
    signs = torch.randint(0, 2, (k, n), generator=generator, device=generator.device, dtype=torch.int8)
    return (2 * signs - 1).to(device=device, dtype=dtype).T


@dataclass(frozen=True)
class Layout:
    """How vectors are held: ``n`` entries of ``dtype`` on ``device``."""

    n: int
    dtype: torch.dtype
    device: torch.device


def random_signs(operator: Any, purpose: str, indices: Sequence[int], seed: int = 0) -> Tensor:
    """Rademacher vectors [n, len(indices)] to multiply an operator by, in its dtype and on its device.

    Each comes from a stream of its own, named by ``purpose``, ``seed`` and its index, so that vector 3 is the same
    whether it is drawn alone or with others. A study draws its for the purposes "lanczos", "trace" and "density".

    Args:
        operator: has ``n``, ``dtype`` and ``device`` (``operators.Operator``, ``Layout``).
        purpose: what the vectors are for: vectors of different purposes are independent.
        indices: which vectors, ``range(8)`` say.
        seed: seed of all streams.
    """
    form: dict[str, Any] = {"dtype": operator.dtype, "device": operator.device}
    columns = [rademacher(operator.n, 1, named_generator(purpose, seed, i), **form) for i in indices]
    return torch.cat(columns, 1) if columns else torch.zeros(operator.n, 0, **form)
