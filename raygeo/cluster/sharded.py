"""One operator whose terms live on several Ray actors: what is asked of it is asked of all of them, and summed."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor

from raygeo.cluster.preflight import check_fits
from raygeo.cluster.settings import ActorSettings
from raygeo.errors import RaygeoError, WorkloadError


@ray.remote(max_restarts=0)
class _Term:
    """Holds one term."""

    def __init__(self, threads: int):
        torch.set_num_threads(threads)

    def build(self, make: Callable[[], Any]) -> dict[str, Any]:
        self.operator = make()
        return {name: getattr(self.operator, name) for name in ("n", "tokens", "name", "dtype", "nll")}

    def call(self, method: str, *arrays: np.ndarray) -> np.ndarray:
        given = [torch.tensor(array, device=self.operator.device) for array in arrays]
        return getattr(self.operator, method)(*given).cpu().numpy()


class ShardedOperator:
    """The sum of operators that ``terms`` build, each on an actor of its own, used as one operator in this process.

    A term has ``n``, ``tokens``, ``name``, ``dtype``, ``device``, ``nll``, ``matmat`` ([n, k] to [n, k]) and
    ``gradient`` ([n]); ``nll``, ``matmat`` and ``gradient`` are summed in the order of the terms, so that the same
    terms give the same bits, and the others are equal in all of them. Tensors are on the CPU here. A product sends its
    vectors to each node once and one result back from each actor. Use as a context, which ends the actors.

    Raises:
        ClusterError: the cluster cannot hold as many actors at once.
        WorkloadError: a term failed, or an actor died.
    """

    device = torch.device("cpu")

    def __init__(self, terms: Sequence[Callable[[], Any]], settings: ActorSettings | None = None):
        settings = settings or ActorSettings()
        check_fits("an operator in terms", {"CPU": settings.cpus, "GPU": settings.gpus}, len(terms))
        actor: Any = _Term
        options = actor.options(num_cpus=settings.cpus, num_gpus=settings.gpus)
        self._actors = [options.remote(max(1, int(settings.cpus))) for _ in terms]
        try:
            told = self._get([actor.build.remote(make) for actor, make in zip(self._actors, terms, strict=True)])
            if any(each[name] != told[0][name] for each in told for name in ("n", "tokens", "name", "dtype")):
                raise WorkloadError("the terms of an operator are of different operators; build all with one recipe.")
        except BaseException:
            self.close()
            raise
        self.n: int = told[0]["n"]
        self.tokens: int = told[0]["tokens"]
        self.name: str = told[0]["name"]
        self.dtype: torch.dtype = told[0]["dtype"]
        self.nll: float = sum(each["nll"] for each in told)

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

    def gradient(self) -> Tensor:
        """Gradient of the scalar: [n]."""
        return self._sum("gradient")

    def _sum(self, method: str, *tensors: Tensor) -> Tensor:
        arrays = [ray.put(tensor.cpu().numpy()) for tensor in tensors]
        answers = [actor.call.remote(method, *arrays) for actor in self._actors]
        total = torch.tensor(self._get(answers[0]))
        for answer in answers[1:]:
            total += torch.tensor(self._get(answer))
        return total

    def _get(self, answers: Any) -> Any:
        try:
            return ray.get(answers)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RaygeoError) else error) from None
        except RayActorError as error:
            raise WorkloadError(
                f"an actor that held a term of an operator died ({error}). It probably needs more memory: use more "
                "actors, a smaller batch, or keep_graphs: false."
            ) from None
