"""Random vectors that depend on a seed and a name alone: not on the device, on other draws, or on who draws them."""

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
