"""The steps of a unit of work that is not finished yet, kept in the store so that it resumes where it was interrupted.

Tensors lie as ``journals/<unit key>/000000.safetensors`` and so on, answers as ``journals/<name>/<key>.json``; each is
there whole or not at all.
"""

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raygeo.errors import StoreError
from raygeo.store import Store

KIND = "journals"


class StoreJournal:
    """The tensors of the unit with content key ``key``, in order."""

    def __init__(self, store: Store, key: str):
        self.store, self.key = store, key

    def __repr__(self) -> str:
        return self.store.path(KIND, self.key)

    def read(self, index: int) -> Tensor | None:
        """The tensor number ``index``, on the CPU, or None if it is not there yet.

        Raises:
            StoreError: its file is damaged.
        """
        data = self.store.read_bytes(self._file(index))
        if data is None:
            return None
        try:
            # A copy, because tensors in a file's bytes are not aligned as torch's own are.
            return load(data)["tensor"].clone(memory_format=torch.contiguous_format)
        except (SafetensorError, KeyError) as error:
            raise StoreError(f"{self._file(index)} in {self} is damaged ({error}); delete the journal.") from error

    def write(self, index: int, tensor: Tensor) -> None:
        """Keep a tensor; once this returns, it is there whole.

        Raises:
            StoreError: the store cannot be written.
        """
        self.store.write_bytes(self._file(index), save({"tensor": tensor.detach().cpu().contiguous()}))

    def clear(self) -> None:
        """Forget all tensors."""
        self.store.delete_folder(KIND, self.key)

    def _file(self, index: int) -> str:
        return f"{KIND}/{self.key}/{index:06d}.safetensors"


class AnswerJournal:
    """Answers to single prompts, by their content keys, in the folder ``name``."""

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name

    def read(self, key: str) -> str | None:
        """What is kept under a key, or None if nothing is."""
        data = self.store.read_bytes(self._file(key))
        return None if data is None else data.decode()

    def write(self, key: str, text: str) -> None:
        """Keep an answer; once this returns, it is there whole.

        Raises:
            StoreError: the store cannot be written.
        """
        self.store.write_bytes(self._file(key), text.encode())

    def clear(self) -> None:
        """Forget all answers."""
        self.store.delete_folder(KIND, self.name)

    def _file(self, key: str) -> str:
        return f"{KIND}/{self.name}/{key}.json"
