"""Tensors in safetensors files, read whole or a slice at a time, so that nothing larger than what is asked is held."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from raygeo.errors import StudentError

Index = tuple[slice, ...]
"""One slice a dimension, the first ones; the empty tuple is everything."""


@dataclass(frozen=True)
class Stored:
    """A tensor on disk that is indexed by slices as one in memory is; only what they cover is read."""

    shape: tuple[int, ...]
    read: Callable[[Index], Tensor]

    def __getitem__(self, index: Index) -> Tensor:
        return self.read(index)


class TensorFiles:
    """The tensors named by ``files``, each in the safetensors file given for it; files are opened when first needed.

    In its file a tensor may stand under another name, its entry in ``keys``.

    Raises:
        StudentError: a file is missing, damaged, or lacks its tensor.
    """

    def __init__(self, files: Mapping[str, Path], keys: Mapping[str, str] | None = None):
        self.files = dict(files)
        self._keys = dict(keys or {})
        self._opened: dict[Path, Any] = {}

    @classmethod
    def of(cls, file: Path) -> "TensorFiles":
        """All tensors of one file. Raises ``SafetensorError`` where it is damaged."""
        try:
            with safe_open(_ordinary(file), framework="pt") as opened:
                return cls(dict.fromkeys(opened.keys(), file))
        except OSError as error:
            raise StudentError(f"{file} cannot be read ({error}); fetch or save the model again.") from error

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the file's header."""
        return tuple(self._slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """Dtype of a tensor as the file's header names it: ``BF16``, ``F32``, ..."""
        return self._slice(key).get_dtype()

    def tensor(self, key: str) -> Tensor:
        """Read a whole tensor, in the dtype it is stored in."""
        return self._file(key).get_tensor(self._keys.get(key, key))

    def read(self, key: str, index: Index) -> Tensor:
        """Read the part of a tensor that slices cover, in the dtype it is stored in."""
        return self._slice(key)[index] if index else self.tensor(key)

    def stored(self, key: str) -> Stored:
        """A tensor to be read later."""
        return Stored(self.shape(key), partial(self.read, key))

    def _slice(self, key: str) -> Any:
        try:
            return self._file(key).get_slice(self._keys.get(key, key))
        except SafetensorError as error:
            raise StudentError(
                f"{self.files[key]} lacks {self._keys.get(key, key)!r} ({error}); fetch or save the model again."
            ) from error

    def _file(self, key: str) -> Any:
        file = self.files[key]
        if file not in self._opened:
            try:
                self._opened[file] = safe_open(_ordinary(file), framework="pt")
            except (OSError, SafetensorError) as error:
                raise StudentError(f"{file} cannot be read ({error}); fetch or save the model again.") from error
        return self._opened[file]


def _ordinary(file: Path) -> Path:
    """The file, if it is one: opening a pipe would wait for ever."""
    if file.exists() and not file.is_file():
        raise StudentError(f"{file} is a device, a pipe or a folder and no ordinary file; fetch the model again.")
    return file
