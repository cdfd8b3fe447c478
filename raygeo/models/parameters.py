"""The parameters of a model as it is loaded, and where on disk each of them stands.

Names on disk are not names in memory: files may hold experts one by one that the model holds in one tensor, may leave
out or add a prefix, and may hold constants that are not parameters. An index maps each parameter of the loaded model
(``model.named_parameters()``; a tied weight has one name) to a tensor in the folder's files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import nn

from raygeo.errors import StudentError
from raygeo.models.folder import check_names, read_settings, weight_files
from raygeo.models.loading import is_buffer, load_model, model_shape, read_config
from raygeo.models.tensors import TensorFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX, CONVERTED = "raygeo_parameters.json", "raygeo_parameters.safetensors"
REVISION = 2
"""Part of the key of every model: another number wherever the same files give other parameters, or another index."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes of weights by their names in safetensors files."""


@dataclass(frozen=True)
class ParameterIndex:
    """``places`` are (file within the folder, key in it) by parameter name.

    ``embedding`` and ``head`` name the input embeddings and the matrix that makes logits of final states, one parameter
    where they are tied; ``head_bias`` what is added to the logits. None where the model has no such parameter. ``tied``
    gives further names of parameters that have several, and the one name that counts. ``bare`` says that tensors go by
    their names in the files, because transformers does not know the family.
    """

    places: dict[str, tuple[str, str]]
    tied: dict[str, str | None] = field(default_factory=dict)
    embedding: str | None = None
    head: str | None = None
    head_bias: str | None = None
    bare: bool = False

    @property
    def ties_head(self) -> bool:
        """Whether the input embeddings are the output head too."""
        return self.head is not None and self.head == self.embedding


def read_index(folder: Path) -> ParameterIndex | None:
    """The index kept in ``folder``, or None.

    Raises:
        StudentError: it is damaged, or names anything but safetensors files in the folder.
    """
    if not (folder / INDEX).is_file():
        return None
    kept = read_settings(folder / INDEX, f"a damaged {INDEX}")
    try:
        index = _INDEX.validate_python(kept)
    except ValidationError as error:
        said = f"{folder / INDEX} is damaged ({error.errors()[0]['msg']}); delete it, and it is made anew."
        raise StudentError(said) from error
    check_names(folder / INDEX, (file for file, _ in index.places.values()))
    return index


_INDEX = TypeAdapter(ParameterIndex)


def index_parameters(folder: Path, target: Path, model: PreTrainedModel | None = None) -> ParameterIndex:
    """Index the parameters of the model in ``folder``; those that no file holds as they are go to ``target``.

    ``model`` is the loaded model, in fp32. Without it, one whose files hold each parameter under its name is taken at
    its word; any other is loaded. Of a loaded one, a parameter is looked for in the files by its name and every longer
    or shorter form of it, and taken for what it is by its values: there are families that change some while loading.

    Where transformers does not know the family, tensors go by their names in the files.

    Raises:
        StudentError: the model cannot be loaded, or a tensor is quantised or otherwise no floating-point weight.
    """
    files = weight_files(folder)
    disk = TensorFiles({key: folder / file for key, file in files.items()})
    try:
        found: Any = model or model_shape(read_config(folder))
    except StudentError:
        return bare_index(folder)
    _refuse_quantised(folder, disk, {name for name, _ in found.named_buffers()})
    places = {name: (files[name], name) for name, _ in found.named_parameters() if name in files}
    if model is not None or not _as_stored(found, disk) or _converted_on_loading(found):
        found = model or load_model(folder)
        places = _matched(disk, files, found)
        rest = {name: value.detach() for name, value in found.named_parameters() if name not in places}
        if rest:
            dtypes = {FLOATS[dtype] for key in files if (dtype := disk.dtype(key)) in FLOATS}
            save_file({name: _narrowed(value, dtypes) for name, value in rest.items()}, target / CONVERTED)
            places |= {name: (CONVERTED, name) for name in rest}
    embedding, head = found.get_input_embeddings(), found.get_output_embeddings()
    return ParameterIndex(
        {name: places[name] for name, _ in found.named_parameters()},
        {
            name: _name_of(found, value)
            for name, value in found.named_parameters(remove_duplicate=False)
            if name not in places
        },
        _name_of(found, getattr(embedding, "weight", None)),
        _name_of(found, getattr(head, "weight", None)),
        _name_of(found, getattr(head, "bias", None)),
    )


def save_index(index: ParameterIndex, folder: Path) -> None:
    """Keep the index in ``folder``, where ``read_index`` finds it."""
    (folder / INDEX).write_text(json.dumps(asdict(index), indent=0))


def bare_index(folder: Path) -> ParameterIndex:
    """An index of all tensors in the files of ``folder`` by their names there; errors are those of ``weight_files``."""
    files = weight_files(folder)
    _refuse_quantised(folder, TensorFiles({key: folder / file for key, file in files.items()}), set())
    return ParameterIndex({key: (file, key) for key, file in files.items()}, bare=True)


def _refuse_quantised(folder: Path, disk: TensorFiles, buffers: set[str]) -> None:
    for key in disk.files:
        dtype = disk.dtype(key)
        if dtype not in FLOATS and key not in buffers and not is_buffer(key):
            raise StudentError(f"{folder}: {key} is stored as {dtype}; give an unquantised model of real weights.")


def _converted_on_loading(model: PreTrainedModel) -> bool:
    """Whether transformers changes tensors of this family while it loads them, so that equal names may lie."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))


def _as_stored(model: nn.Module, disk: TensorFiles) -> bool:
    """Whether the files hold the parameters of ``model`` under their names, and nothing else but constants."""
    wanted, constants = dict(model.named_parameters()), dict(model.named_buffers())
    return all(name in disk.files and disk.shape(name) == tuple(value.shape) for name, value in wanted.items()) and all(
        key in wanted or is_buffer(key) or key in constants for key in disk.files
    )


def _matched(disk: TensorFiles, files: dict[str, str], model: nn.Module) -> dict[str, tuple[str, str]]:
    """Places of the parameters that some file holds with their values, under a form of their name."""
    by_end: dict[str, list[str]] = {}
    for key in files:
        by_end.setdefault(_end(key), []).append(key)
    places = {}
    for name, parameter in model.named_parameters():
        alike = [key for key in by_end.get(_end(name), ()) if key.endswith(f".{name}") or name.endswith(f".{key}")]
        for key in ([name] if name in files else []) + alike:
            if disk.shape(key) == tuple(parameter.shape) and torch.equal(
                disk.tensor(key).to(parameter.dtype), parameter.detach()
            ):
                places[name] = (files[key], key)
                break
    return places


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _narrowed(value: torch.Tensor, dtypes: set[torch.dtype]) -> torch.Tensor:
    """The value in the narrowest of ``dtypes`` that holds it exactly."""
    for dtype in sorted(dtypes, key=lambda dtype: (dtype.itemsize, str(dtype))):
        if torch.equal(value.to(dtype).to(value.dtype), value):
            return value.to(dtype).contiguous()
    return value.contiguous()


def _name_of(model: nn.Module, wanted: object) -> str | None:
    return next((name for name, parameter in model.named_parameters() if parameter is wanted), None)
