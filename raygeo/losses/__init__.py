"""The losses a study can name. A new one is its own file and one line in the union below."""

from typing import Annotated, get_args

from pydantic import Field

from raygeo.losses.base import Loss
from raygeo.losses.dft import DFT
from raygeo.losses.dpo import DPO
from raygeo.losses.grpo import OfflineGRPO
from raygeo.losses.rft import RFT
from raygeo.losses.rift import RIFT
from raygeo.losses.sft import SFT

AnyLoss = Annotated[SFT | RFT | DFT | RIFT | OfflineGRPO | DPO, Field(discriminator="type")]

LOSSES: dict[str, type[Loss]] = {loss.model_fields["type"].default: loss for loss in get_args(get_args(AnyLoss)[0])}

__all__ = ["DFT", "DPO", "LOSSES", "RFT", "RIFT", "SFT", "AnyLoss", "Loss", "OfflineGRPO"]
