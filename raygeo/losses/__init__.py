"""The losses: each is one file here, or a class that another package names; ``raygeo.losses.registry`` finds them.

The imports below are for Python code alone, which a type checker could not follow into a registry: no study looks at
them. They load no registry, so that packages with losses of their own can import from here.
"""

from raygeo.losses.asft import ASFT as ASFT
from raygeo.losses.awr import AWR as AWR
from raygeo.losses.base import Loss as Loss
from raygeo.losses.cdpo import ConservativeDPO as ConservativeDPO
from raygeo.losses.dft import DFT as DFT
from raygeo.losses.dpo import DPO as DPO
from raygeo.losses.dpo_nll import DPOWithNLL as DPOWithNLL
from raygeo.losses.dpo_norm import NormalizedDPO as NormalizedDPO
from raygeo.losses.f_sft import FSFT as FSFT
from raygeo.losses.grpo import OfflineGRPO as OfflineGRPO
from raygeo.losses.ift import IFT as IFT
from raygeo.losses.ipo import IPO as IPO
from raygeo.losses.iw_sft import IWSFT as IWSFT
from raygeo.losses.kd_forward import KDForward as KDForward
from raygeo.losses.kd_jsd import KDJSD as KDJSD
from raygeo.losses.kd_reverse import KDReverse as KDReverse
from raygeo.losses.kto import KTO as KTO
from raygeo.losses.ls_sft import LabelSmoothedSFT as LabelSmoothedSFT
from raygeo.losses.off_policy_grpo import OffPolicyGRPO as OffPolicyGRPO
from raygeo.losses.otr import OTR as OTR
from raygeo.losses.poft import PoFT as PoFT
from raygeo.losses.rft import RFT as RFT
from raygeo.losses.rift import RIFT as RIFT
from raygeo.losses.robust_dpo import RobustDPO as RobustDPO
from raygeo.losses.s3ft import S3FT as S3FT
from raygeo.losses.sft import SFT as SFT
from raygeo.losses.simpo import SimPO as SimPO
from raygeo.losses.uds_sft import UDSSFT as UDSSFT
