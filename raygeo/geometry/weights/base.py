"""The base model's weights as deltas are measured against them."""

from raygeo.errors import DeltaError
from raygeo.geometry.weights import linalg
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import Dense, Entry
from raygeo.store import AnyPath


class BaseWeights(Checkpoint):
    """Norms of a base model's parameters, read one parameter at a time and remembered."""

    def __init__(self, folder: AnyPath):
        super().__init__(folder)
        self._norms: dict[str, float] = {}

    def norm(self, name: str) -> float:
        """Frobenius norm of a parameter, summed in fp64."""
        if name not in self._norms:
            self._norms[name] = linalg.norm(Dense(self.stored(name)))
        return self._norms[name]

    def check(self, name: str, entry: Entry) -> None:
        """Refuse a delta entry that does not fit the base.

        Raises:
            DeltaError: the base lacks the parameter, or has it in another shape.
        """
        shape = self.shape(name)
        if shape != entry.shape:
            raise DeltaError(
                f"the delta of {name} has shape {entry.shape} where {self.folder} has {shape}; "
                "it was trained from another model."
            )
