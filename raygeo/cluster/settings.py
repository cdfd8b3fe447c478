"""How much of the cluster the fanned-out workloads may use."""

from pydantic import Field

from raygeo.settings import Settings


class ActorSettings(Settings):
    """Resources of the actors that run rollouts, reference log-probabilities, evaluation and geometry."""

    max_actors: int | None = Field(None, ge=1)
    """At most this many actors at once; by default as many as the cluster can hold."""
    cpus: float = Field(1, gt=0)
    """CPUs per actor; whole CPUs are also its torch threads."""
    gpus: float = Field(0, ge=0)
    """GPUs per actor."""
