"""The tensors of a Hugging Face model folder, read from its safetensors whole or a slice at a time."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from raygeo.errors import DeltaError, StudentError
from raygeo.store import AnyPath
from raygeo.students.tensors import Index, Stored, TensorFiles

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TIED = {HEAD: EMBEDDING, EMBEDDING: HEAD}
_DTYPES = {"F64", "F32", "F16", "BF16"}
_BLOCK_ROWS = 1024


def is_model(folder: AnyPath) -> bool:
    """Whether ``folder`` holds the weights of a complete model as safetensors."""
    return Path(folder, WEIGHTS).is_file() or Path(folder, WEIGHTS_INDEX).is_file()


class Checkpoint:
    """Parameters of the model in ``folder`` by name; of two tied ones a checkpoint holds one, and either name finds it.

    Raises:
        StudentError: the folder holds neither ``model.safetensors`` nor its index, or a damaged one.
    """

    def __init__(self, folder: AnyPath):
        self.folder = Path(folder)
        index, single = self.folder / WEIGHTS_INDEX, self.folder / WEIGHTS
        if not is_model(folder):
            raise StudentError(f"{folder} holds no {WEIGHTS} nor {WEIGHTS_INDEX}; save it as safetensors there.")
        try:
            self.files = TensorFiles.of(single) if single.is_file() else self._sharded(index)
        except (SafetensorError, ValueError, KeyError) as error:
            raise StudentError(f"{folder} holds damaged weights ({error}); fetch or save the model again.") from error
        self._last: tuple[str, Index, Tensor] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.files.files or _TIED.get(name, name) in self.files.files

    def names(self) -> list[str]:
        """Names of the parameters, sorted. An output head stored beside the embeddings it repeats is left out."""
        names = sorted(self.files.files)
        return [name for name in names if name != HEAD] if self._repeats_head() else names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter; the tensor itself is not read."""
        return self.files.shape(self._key(name))

    def dtype(self, name: str) -> str:
        """Dtype a parameter is stored in: F64, F32, F16 or BF16.

        Raises:
            StudentError: the parameter is stored quantised.
        """
        key = self._key(name)
        dtype = self.files.dtype(key)
        if dtype not in _DTYPES:
            raise StudentError(f"{self.folder}: {key} is stored as {dtype}; give an unquantised model.")
        return dtype

    def tensor(self, name: str) -> Tensor:
        """Read a parameter, in the dtype it is stored in; errors are those of ``dtype``."""
        self.dtype(name)
        return self.files.tensor(self._key(name))

    def stored(self, name: str) -> Stored:
        """A parameter to be read later, a slice at a time; errors are those of ``dtype``."""
        self.dtype(name)
        return self.files.stored(self._key(name))

    def shared(self, name: str) -> Stored:
        """As ``stored``, for several readers that go through a parameter together: the slice read last is remembered.

        What is read belongs to all of them and must not be changed.
        """
        self.dtype(name)
        key = self._key(name)
        return Stored(self.files.shape(key), partial(self._remembered, key))

    def equals(self, other: "Checkpoint") -> bool:
        """Whether both hold the same parameters with the same values, in whatever files."""
        return self.names() == other.names() and all(
            self.shape(name) == other.shape(name) and torch.equal(self.tensor(name), other.tensor(name))
            for name in self.names()
        )

    def head(self) -> Tensor:
        """Read the matrix [V, d] that turns final hidden states into logits.

        Raises:
            StudentError: the head has a bias as well.
        """
        if "lm_head.bias" in self.files.files:
            raise StudentError(f"{self.folder}: its output head has a bias, so its logits are not head times states.")
        return self.tensor(HEAD)

    def _sharded(self, index: Path) -> TensorFiles:
        weight_map = json.loads(index.read_text())["weight_map"]
        return TensorFiles({name: self.folder / file for name, file in weight_map.items()})

    def _remembered(self, key: str, index: Index) -> Tensor:
        if self._last is None or self._last[:2] != (key, index):
            self._last = None
            self._last = (key, index, self.files.read(key, index))
        return self._last[2]

    def _repeats_head(self) -> bool:
        if not {HEAD, EMBEDDING} <= self.files.files.keys() or self.shape(HEAD) != self.shape(EMBEDDING):
            return False
        rows = self.shape(HEAD)[0]
        blocks = [(slice(start, min(start + _BLOCK_ROWS, rows)),) for start in range(0, rows, _BLOCK_ROWS)]
        return all(torch.equal(self.files.read(HEAD, block), self.files.read(EMBEDDING, block)) for block in blocks)

    def _key(self, name: str) -> str:
        for key in (name, _TIED.get(name, name)):
            if key in self.files.files:
                return key
        raise DeltaError(f"the delta names {name!r}, which {self.folder} lacks; it was trained from another model.")
