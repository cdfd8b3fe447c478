"""One operator whose terms live in several processes: what is asked of it is asked of all of them, and summed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Self

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor

from raygeo.cluster.settings import ActorSettings, options
from raygeo.errors import LostProcessError, RaygeoError, WorkloadError

PLACE_SECONDS = 300.0
"""How long the processes of an operator may wait for a place."""
_EQUAL = ("n", "tokens", "name", "dtype")


@ray.remote(max_restarts=0)
class _Term:
    """Holds one term."""

    def __init__(self, threads: int):
        torch.set_num_threads(threads)

    def build(self, make: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any]:
        self.open = ExitStack()
        self.operator = self.open.enter_context(make())
        return {name: getattr(self.operator, name) for name in (*_EQUAL, "nll")}

    def call(self, method: str, *arrays: np.ndarray) -> np.ndarray:
        given = [torch.tensor(array, device=self.operator.device) for array in arrays]
        return getattr(self.operator, method)(*given).cpu().numpy()


class ShardedOperator:
    """The sum of an operator in this process, ``own``, and of those that ``others`` make on an actor each.

    An operator has ``n``, ``tokens``, ``name``, ``dtype``, ``device``, ``nll``, ``matmat`` and ``exact`` ([n, k] to
    [n, k]) and ``gradient`` ([n]). ``nll``, products and ``gradient`` are summed in the order of the terms, so that the
    same terms give the same bits; everything else is as ``own`` has it. A product sends its vectors to each node once
    and one result back from each actor, while the term in this process works. Use as a context, which ends the actors.

    Raises:
        WorkloadError: a term failed.
        LostProcessError: an actor died, or there is no place for one.
    """

    def __init__(
        self,
        own: Any,
        others: Sequence[Callable[[], AbstractContextManager[Any]]],
        settings: ActorSettings | None = None,
    ):
        settings = settings or ActorSettings()
        actor: Any = _Term
        placed = actor.options(**options(settings.demand))
        self._own = own
        self._actors = [placed.remote(max(1, int(settings.cpus))) for _ in others]
        try:
            there = [actor.__ray_ready__.remote() for actor in self._actors]
            if len(ray.wait(there, num_returns=len(there), timeout=PLACE_SECONDS)[0] if there else []) < len(there):
                raise LostProcessError(
                    f"{len(there)} processes for the terms of an operator have found no place within "
                    f"{PLACE_SECONDS:g} s: nodes have gone, or others use them."
                )
            reported = self._get([actor.build.remote(make) for actor, make in zip(self._actors, others, strict=True)])
            if any(each[name] != getattr(own, name) for each in reported for name in _EQUAL):
                raise WorkloadError("the terms of an operator are of different operators; make all from one recipe.")
        except BaseException:
            self.close()
            raise
        self.nll: float = own.nll + sum(each["nll"] for each in reported)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply by each column of ``vectors`` [n, k]: [n, k]."""
        return self._sum("matmat", vectors)

    def exact(self, vectors: Tensor) -> Tensor:
        """Multiply by each column of ``vectors`` [n, k] in fp64: [n, k]."""
        return self._sum("exact", vectors)

    def gradient(self) -> Tensor:
        """Gradient of the scalar: [n]."""
        return self._sum("gradient")

    def _sum(self, method: str, *tensors: Tensor) -> Tensor:
        arrays = [ray.put(tensor.cpu().numpy()) for tensor in tensors]
        answers = [actor.call.remote(method, *arrays) for actor in self._actors]
        total = getattr(self._own, method)(*tensors).clone()
        for answer in answers:
            total += torch.tensor(self._get(answer)).to(total)
        return total

    def _get(self, answers: Any) -> Any:
        try:
            return ray.get(answers)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RaygeoError) else error) from None
        except RayActorError as error:
            raise LostProcessError(
                f"an actor that held a term of an operator died ({error}). It probably needs more memory: use more "
                "actors, a smaller batch, or keep_graphs: false."
            ) from None
