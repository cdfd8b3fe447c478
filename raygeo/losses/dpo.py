"""Direct preference optimisation on pairs of a correct and a wrong rollout of one prompt."""

from typing import ClassVar, Literal

from raygeo.losses.bradley_terry import BradleyTerry


class DPO(BradleyTerry):
    """``-log sigmoid(beta d)``, ``d`` being the chosen rollout's log-ratio to the base less the rejected one's.

    Log-ratios are sums over completion tokens. Per-token coefficient: ``beta sigmoid(-beta d)`` on the chosen rollout,
    minus that on the rejected one. The loss is log 2 at the base.
    """

    title: ClassVar[str] = "DPO"
    paper: ClassVar[str] = "Rafailov et al. 2023, arXiv:2305.18290, equation 7"
    formula: ClassVar[str] = "-log sigmoid(beta [log p/p_base (chosen) - log p/p_base (rejected)])"
    order: ClassVar[int] = 300

    type: Literal["dpo"] = "dpo"
    """Names the loss."""
