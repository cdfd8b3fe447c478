"""How a sweep chooses configurations, stops runs early, and judges them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from raygeo.settings import Settings

Metric = Literal["accuracy", "heldout_nll", "top_eigenvalue"]
Mode = Literal["max", "min"]


class Objective(Settings):
    """One number by which finished runs are compared."""

    metric: Metric
    """``accuracy`` of greedy answers to the held-out prompts; ``heldout_nll``, the token-mean NLL of held-out correct
    solutions at the end of training; ``top_eigenvalue``, the largest Hessian eigenvalue on the curvature probe."""
    mode: Mode = "min"
    """Whether more or less of it is better; by default more accuracy, less of anything else."""

    @field_validator("metric", mode="before")
    @classmethod
    def _renamed(cls, metric: Any) -> Any:
        if metric == "sharpness":
            raise ValueError("sharpness is now top_eigenvalue")
        return metric

    @model_validator(mode="before")
    @classmethod
    def _more_accuracy(cls, raw: Any) -> Any:
        return {"mode": "max"} | raw if isinstance(raw, dict) and raw.get("metric") == "accuracy" else raw


class Asha(Settings):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at every rung the worse runs are stopped.

    A run competes with runs of its own loss only, since held-out NLL is not what every loss is after. Whether a run is
    stopped depends on which others reached the rung before it, hence on timing.
    """

    type: Literal["asha"] = "asha"
    """Names the scheduler."""
    metric: Literal["heldout_nll"] = "heldout_nll"
    """What is compared: the NLL of held-out correct solutions, less being better."""
    grace: int = Field(10, ge=1)
    """Steps before the first rung; the held-out NLL is measured every so many steps."""
    reduction_factor: int = Field(3, ge=2)
    """One of so many runs continues at a rung; the next rung is so many times further."""


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
    scheduler: Annotated[Asha | None, BeforeValidator(_null_if_none)] = None
    """``none``, or ``{type: asha}``."""
    objectives: tuple[Objective, ...] = Field((Objective(metric="accuracy", mode="max"),), min_length=1)
    """What runs are judged by; with several of them, no run that is beaten in all is preferred."""

    @model_validator(mode="after")
    def _distinct(self) -> "SweepSettings":
        metrics = [objective.metric for objective in self.objectives]
        if len(set(metrics)) < len(metrics):
            raise ValueError("every objective needs a metric of its own")
        return self
