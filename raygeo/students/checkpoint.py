"""The tensors of a Hugging Face model folder, read from its safetensors one at a time."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from raygeo.errors import DeltaError, StudentError
from raygeo.store import AnyPath

_TIED = {"lm_head.weight": "model.embed_tokens.weight", "model.embed_tokens.weight": "lm_head.weight"}
_DTYPES = {"F64", "F32", "F16", "BF16"}


class Checkpoint:
    """Parameters of the model in ``folder`` by name; of two tied ones a checkpoint holds one, and either name finds it.

    Raises:
        StudentError: the folder holds neither ``model.safetensors`` nor its index.
    """

    def __init__(self, folder: AnyPath):
        self.folder = Path(folder)
        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        if single.is_file():
            with safe_open(single, framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), single)
        elif index.is_file():
            weight_map = json.loads(index.read_text())["weight_map"]
            self._files = {name: self.folder / file for name, file in weight_map.items()}
        else:
            raise StudentError(f"{folder} holds no {single.name} nor {index.name}; save the base as safetensors there.")

    @property
    def names(self) -> list[str]:
        """Names of the tensors the checkpoint holds, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter; the tensor itself is not read."""
        key = self._key(name)
        with safe_open(self._files[key], framework="pt") as file:
            return tuple(file.get_slice(key).get_shape())

    def tensor(self, name: str) -> Tensor:
        """Read a parameter, in the dtype it is stored in.

        Raises:
            StudentError: the parameter is stored quantised.
        """
        key = self._key(name)
        with safe_open(self._files[key], framework="pt") as file:
            dtype = file.get_slice(key).get_dtype()
            if dtype not in _DTYPES:
                raise StudentError(f"{self.folder}: {key} is stored as {dtype}; give an unquantised base model.")
            return file.get_tensor(key)

    def head(self) -> Tensor:
        """Read the matrix [V, d] that turns final hidden states into logits.

        Raises:
            StudentError: the head has a bias as well.
        """
        if "lm_head.bias" in self._files:
            raise StudentError(f"{self.folder}: its output head has a bias, so its logits are not head times states.")
        return self.tensor("lm_head.weight")

    def _key(self, name: str) -> str:
        for key in (name, _TIED.get(name, name)):
            if key in self._files:
                return key
        raise DeltaError(f"the delta names {name!r}, which {self.folder} lacks; it was trained from another model.")
