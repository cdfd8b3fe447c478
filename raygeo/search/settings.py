"""How a sweep chooses configurations, stops runs early, and judges them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from raygeo.naming import HELDOUT_NLL, TRAIN_NLL
from raygeo.settings import Settings

Mode = Literal["max", "min"]
REPORTED = (HELDOUT_NLL, TRAIN_NLL)
"""The metrics that all runs report while they train, and that compare runs of one loss."""


def _renamed(metric: Any) -> Any:
    if metric == "sharpness":
        raise ValueError(
            "sharpness is now geometry/top_eigenvalue; a metric of geometry.sharpness has its full name, "
            "geometry/sharpness/sam/0.05"
        )
    return metric


Named = Annotated[str, Field(min_length=1, max_length=200), BeforeValidator(_renamed)]
"""A metric by its name in MLflow; without the part that settings or data decide (``eval/accuracy``,
``geometry/sharpness``) it is the chief one of its kind."""


class Objective(Settings):
    """One number by which finished runs are compared."""

    metric: Named
    """A metric of the study, by its name in MLflow: ``eval/accuracy`` of the first benchmark, the held-out prompts
    unless they are not answered; ``eval/NAME/accuracy`` of another; ``eval/heldout/nll``, the token-mean NLL of
    held-out correct solutions at the end of training; or one of an analysis that ``geometry`` asks for
    (``geometry/kl_to_base``; ``raygeo analyses``)."""
    mode: Mode | None = None
    """Whether more or less of it is better; by default what is better of that metric, where it has a better way."""


class Constraint(Settings):
    """A bound that runs must keep: whatever the objectives, one that does not is ranked behind all that do."""

    metric: Named
    """As in an objective."""
    at_most: float | None = None
    """The greatest value."""
    at_least: float | None = None
    """The least value."""

    @model_validator(mode="after")
    def _bounded(self) -> "Constraint":
        if self.at_most is None and self.at_least is None:
            raise ValueError("a constraint needs at_most, at_least, or both")
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least:g} is more than at_most {self.at_most:g}")
        return self

    def excess(self, value: float) -> float:
        """How far ``value`` lies beyond the bound, relative to it unless it is 0; at most 0 where it is kept."""
        sides = [(value, self.at_most, 1.0), (value, self.at_least, -1.0)]
        return max(sign * (x - bound) / (abs(bound) or 1.0) for x, bound, sign in sides if bound is not None)


class Asha(Settings):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at every rung the worse runs are stopped.

    A run competes with runs of its own loss only, since an NLL is not what every loss is after. Whether a run is
    stopped depends on which others reached the rung before it, hence on timing.
    """

    type: Literal["asha"] = "asha"
    """Names the scheduler."""
    metric: Literal["eval/heldout/nll", "train/nll"] = "eval/heldout/nll"
    """What is compared, less being better: the NLL of held-out correct solutions, or that of the run's own batches."""
    grace: int = Field(10, ge=1)
    """Steps before the first rung; the held-out NLL is measured every so many steps."""
    reduction_factor: int = Field(3, ge=2)
    """One of so many runs continues at a rung; the next rung is so many times further."""

    @field_validator("metric", mode="before")
    @classmethod
    def _reported(cls, metric: Any) -> Any:
        if isinstance(metric, str) and metric not in REPORTED:
            raise ValueError(
                f"runs are stopped by what they report while they train, {' or '.join(REPORTED)}; any other metric is "
                "measured once a run is finished, and may be an objective"
            )
        return metric


def _null_if_none(value: Any) -> Any:
    return None if value == "none" else value


class SweepSettings(Settings):
    """How values are chosen where the study gives lists and ranges, and how the runs are judged."""

    search: Literal["grid", "random", "optuna"] = "grid"
    """``grid`` trains every combination of the listed values; ``random`` draws from lists and ranges, seeded;
    ``optuna`` lets Optuna's TPE suggest what to train next (install ``raygeo[optuna]``). Seeds in a list are always all
    trained."""
    samples: int = Field(8, ge=1, le=10_000)
    """Configurations for each entry of ``runs`` that varies (``optuna`` divides the total over the entries by merit).
    Each is trained with every seed."""
    seed: int = Field(0, ge=0)
    """Seed of the draws."""
    scheduler: Annotated[
        Asha | None, BeforeValidator(_null_if_none, json_schema_input_type=Asha | Literal["none"] | None)
    ] = None
    """``none``, or ``{type: asha}``."""
    objectives: tuple[Objective, ...] = Field((Objective(metric="eval/accuracy"),), min_length=1)
    """What runs are judged by; with several of them, no run that is beaten in all is preferred."""
    constraints: tuple[Constraint, ...] = ()
    """Bounds that runs must keep."""

    @model_validator(mode="after")
    def _distinct(self) -> "SweepSettings":
        objectives, constraints = ([one.metric for one in given] for given in (self.objectives, self.constraints))
        for what, metrics in (("objective", objectives), ("constraint", constraints)):
            if len(set(metrics)) < len(metrics):
                raise ValueError(f"every {what} needs a metric of its own")
        return self
