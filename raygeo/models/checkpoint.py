"""The parameters of a model folder, read from its safetensors whole or a slice at a time."""

import re
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.models.folder import WEIGHTS, WEIGHTS_INDEX
from raygeo.models.parameters import CONVERTED, ParameterIndex, bare_index, index_parameters, read_index
from raygeo.models.tensors import Index, Stored, TensorFiles
from raygeo.store import AnyPath

_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
UNTIE = (
    "Give the base a head of its own (set config.tie_word_embeddings to False and the output embeddings to a copy of "
    "the input embeddings, then save_pretrained), and train and compare from that: it is the same model."
)
"""What to do about adapters on tied weights."""


def is_model(folder: AnyPath) -> bool:
    """Whether ``folder`` holds the weights of a complete model as safetensors."""
    return Path(folder, WEIGHTS).is_file() or Path(folder, WEIGHTS_INDEX).is_file()


class Checkpoint:
    """Parameters of the model in ``folder``, by the names they have once it is loaded, tied ones once.

    The folder's own index of them is used where there is one, as in a store; otherwise one is made. A folder without
    ``config.json`` is taken for a bare set of tensors, named as in its files.

    Raises:
        StudentError: the folder holds no model, or a damaged or quantised one.
    """

    def __init__(self, folder: AnyPath):
        self.folder = Path(folder)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.index = read_index(self.folder) or self._made_index()
        places = self.index.places
        self.files = TensorFiles(
            {name: self._path(file) for name, (file, _) in places.items()},
            {name: key for name, (_, key) in places.items()},
        )
        self._last: tuple[str, Index, Tensor] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.files.files

    def names(self) -> list[str]:
        """Names of the parameters, sorted."""
        return sorted(self.files.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter; the tensor itself is not read."""
        return self.files.shape(self._known(name))

    def dtype(self, name: str) -> str:
        """Dtype a parameter is stored in: F64, F32, F16 or BF16."""
        return self.files.dtype(self._known(name))

    def tensor(self, name: str) -> Tensor:
        """Read a parameter, in the dtype it is stored in."""
        return self.files.tensor(self._known(name))

    def stored(self, name: str) -> Stored:
        """A parameter to be read later, a slice at a time."""
        return self.files.stored(self._known(name))

    def shared(self, name: str) -> Stored:
        """As ``stored``, for several readers that go through a parameter together: the slice read last is remembered.

        What is read belongs to all of them and must not be changed.
        """
        return Stored(self.shape(name), partial(self._remembered, name))

    def equals(self, other: "Checkpoint") -> bool:
        """Whether both hold the same parameters with the same values, in whatever files."""
        return self.names() == other.names() and all(
            self.shape(name) == other.shape(name) and torch.equal(self.tensor(name), other.tensor(name))
            for name in self.names()
        )

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Read what turns final hidden states into logits: a matrix [V, d], and a bias [V] where there is one.

        Raises:
            DeltaError: the model has no such matrix.
        """
        if self.index.head is None:
            raise DeltaError(f"{self.folder} has no output embedding, so its logits cannot be made of its states.")
        bias = self.index.head_bias
        return self.tensor(self.index.head), None if bias is None else self.tensor(bias)

    def _made_index(self) -> ParameterIndex:
        if not (self.folder / "config.json").is_file():
            return bare_index(self.folder)
        self._scratch = tempfile.TemporaryDirectory(prefix="raygeo-")
        return index_parameters(self.folder, Path(self._scratch.name))

    def _path(self, file: str) -> Path:
        return Path(self._scratch.name, file) if self._scratch and file == CONVERTED else self.folder / file

    def _remembered(self, name: str, index: Index) -> Tensor:
        if self._last is None or self._last[:2] != (name, index):
            self._last = None
            self._last = (name, index, self.files.read(name, index))
        return self._last[2]

    def _known(self, name: str) -> str:
        if (shared := self.index.tied.get(name)) is not None:
            raise DeltaError(
                f"the delta names {name!r}, which is one parameter with {shared} in {self.folder} (tied). What changes "
                "one of them alone makes a model that this base cannot be changed into, and merging it there would "
                f"change both. {UNTIE}"
            )
        if name not in self.files.files and _ONE_EXPERT.search(name):
            raise DeltaError(
                f"the delta names {name!r}, and {self.folder} holds its experts in one parameter together, as "
                "transformers loads them; merge the adapter into its base with the version it was trained with, and "
                "compare the merged model."
            )
        if name not in self.files.files:
            raise DeltaError(f"the delta names {name!r}, which {self.folder} lacks; it was trained from another model.")
        return name
