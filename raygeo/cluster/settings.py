"""How much of the cluster the fanned-out workloads may use."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from raygeo.settings import Settings


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise ValueError(f"Ray shares one GPU between processes, or gives whole ones, not {gpus:g}; give {int(gpus)}")
    return gpus


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_above_one)]
"""GPUs of a process: a share of one, or whole ones."""


class ActorSettings(Settings):
    """Resources of the actors that run rollouts, reference log-probabilities, evaluation and geometry."""

    max_actors: int | None = Field(None, ge=1)
    """At most this many actors at once; by default as many as the cluster can hold."""
    cpus: float = Field(1, gt=0)
    """CPUs per actor, a share of one too; whole CPUs are also its torch threads."""
    gpus: Gpus = 0
    """GPUs per actor; a share lets several actors hold a small student each on one GPU."""
    gpu_type: str | None = None
    """Only on nodes with this kind of GPU, as Ray names it: ``H100``, ``A100-80G``, ``L4``."""

    @model_validator(mode="after")
    def _typed_gpus_are_asked_for(self) -> Self:
        if self.gpu_type is not None and self.gpus == 0:
            raise ValueError("gpu_type says which GPUs; give gpus with it")
        return self

    @property
    def demand(self) -> dict[str, float]:
        """Ray resources of one actor."""
        return demand(self.cpus, self.gpus, self.gpu_type)


def demand(cpus: float, gpus: float, gpu_type: str | None = None) -> dict[str, float]:
    """Ray resources of a process with so many CPUs and GPUs, of which kind if that matters."""
    kind = {} if gpu_type is None else {f"accelerator_type:{gpu_type}": 0.001}
    return {"CPU": cpus} | ({"GPU": gpus} if gpus > 0 else {}) | kind


def options(demand: dict[str, float]) -> dict[str, Any]:
    """The same as options of a Ray task or actor."""
    others = {name: amount for name, amount in demand.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": demand["CPU"], "num_gpus": demand.get("GPU", 0), "resources": others}
