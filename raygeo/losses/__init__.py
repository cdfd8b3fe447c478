"""The losses a study can name. A new one is its own file and one line in the union below."""

from typing import Annotated, get_args

from pydantic import Field

from raygeo.losses.asft import ASFT
from raygeo.losses.awr import AWR
from raygeo.losses.base import Loss
from raygeo.losses.cdpo import ConservativeDPO
from raygeo.losses.dft import DFT
from raygeo.losses.dpo import DPO
from raygeo.losses.dpo_nll import DPOWithNLL
from raygeo.losses.dpo_norm import NormalizedDPO
from raygeo.losses.f_sft import FSFT
from raygeo.losses.grpo import OfflineGRPO
from raygeo.losses.ift import IFT
from raygeo.losses.ipo import IPO
from raygeo.losses.iw_sft import IWSFT
from raygeo.losses.kto import KTO
from raygeo.losses.off_policy_grpo import OffPolicyGRPO
from raygeo.losses.otr import OTR
from raygeo.losses.poft import PoFT
from raygeo.losses.rft import RFT
from raygeo.losses.rift import RIFT
from raygeo.losses.robust_dpo import RobustDPO
from raygeo.losses.sft import SFT
from raygeo.losses.simpo import SimPO

AnyLoss = Annotated[
    SFT
    | RFT
    | DFT
    | ASFT
    | OTR
    | IWSFT
    | IFT
    | PoFT
    | FSFT
    | AWR
    | RIFT
    | OfflineGRPO
    | OffPolicyGRPO
    | DPO
    | ConservativeDPO
    | RobustDPO
    | NormalizedDPO
    | DPOWithNLL
    | IPO
    | SimPO
    | KTO,
    Field(discriminator="type"),
]

LOSSES: dict[str, type[Loss]] = {loss.model_fields["type"].default: loss for loss in get_args(get_args(AnyLoss)[0])}

__all__ = [
    "ASFT",
    "AWR",
    "DFT",
    "DPO",
    "FSFT",
    "IFT",
    "IPO",
    "IWSFT",
    "KTO",
    "LOSSES",
    "OTR",
    "RFT",
    "RIFT",
    "SFT",
    "AnyLoss",
    "ConservativeDPO",
    "DPOWithNLL",
    "Loss",
    "NormalizedDPO",
    "OffPolicyGRPO",
    "OfflineGRPO",
    "PoFT",
    "RobustDPO",
    "SimPO",
]
