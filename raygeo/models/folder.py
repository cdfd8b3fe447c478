"""What may be read of a model's folder: ordinary files of known kinds in that folder, none of which runs code."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from raygeo.errors import StudentError
from raygeo.models.tensors import TensorFiles

SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".spm", ".bpe", ".codes", ".vocab")
"""Endings of the files that a model, an adapter or a delta and its tokenizer are read from."""
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"

_SETTINGS_BYTES = 64 << 20
_LAYERS = frozenset({"num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "decoder_layers"})
_MOST_LAYERS = 4096
_MOST_COUNTED = 1 << 20
_MOST_LABELS = 1 << 16
"""A name is made of each label of a classifier, whether it is used as one or not."""


def check_files(folder: Path) -> None:
    """Refuse a folder in which something else than an ordinary file has a name that a model's files have.

    A link may lead to a file in the folder, to one in the cache of the hub or, as a store's do, to one of the same name
    elsewhere.

    Raises:
        StudentError: there is a pipe or a device, or a link that leads elsewhere or nowhere.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIXES) and (target := _link_target(folder, entry.name)) is not None:
                inside = target.is_relative_to(folder.resolve())
                if not inside and target.name != entry.name and target.parent.name != "blobs":
                    raise StudentError(_leads_out(folder / entry.name, target))


def check_links(folder: Path, names: list[str]) -> None:
    """Refuse files of a folder that somebody gives if they lie outside of it, and not in the cache of the hub.

    Raises:
        StudentError: one does; or it is a pipe or a device.
    """
    home, blobs = folder.resolve(), folder.resolve().parent.parent / "blobs"
    for name in names:
        target = _link_target(folder, name)
        if target is not None and not target.is_relative_to(home) and target.parent != blobs:
            raise StudentError(_leads_out(folder / name, target))


def _link_target(folder: Path, name: str) -> Path | None:
    """Where a file is if it, or a folder above it, is a link; it is seen that it is an ordinary one, or a folder."""
    file = folder / name
    try:
        mode, target = file.stat().st_mode, file.resolve()
    except (OSError, RuntimeError) as error:
        raise StudentError(f"{file} leads nowhere ({error}); fetch or save the model again.") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StudentError(f"{file} is a device or a pipe and no ordinary file; take it out of the folder.")
    return None if target == folder.resolve() / name else target


def _leads_out(file: Path, target: Path) -> str:
    return f"{file} is a link out of its folder, to {target}; copy the folder with `cp -rL` if that file belongs to it."


def weight_files(folder: Path) -> dict[str, str]:
    """The file, relative to ``folder``, of each tensor on disk by its key there.

    Raises:
        StudentError: there is neither ``model.safetensors`` nor its index, one is damaged, or the index names files
            that are not safetensors in that folder.
    """
    single, index = folder / WEIGHTS, folder / WEIGHTS_INDEX
    try:
        if single.is_file():
            return dict.fromkeys(TensorFiles.of(single).files, WEIGHTS)
    except SafetensorError as error:
        raise StudentError(f"{folder} holds damaged weights ({error}); fetch or save the model again.") from error
    if not index.is_file():
        raise StudentError(f"{folder} holds no {WEIGHTS} nor {WEIGHTS_INDEX}; save it as safetensors there.")
    found = read_settings(index, "damaged weights").get("weight_map")
    if not isinstance(found, dict):
        raise StudentError(f"{folder} holds damaged weights (no weight_map); fetch or save the model again.")
    check_names(index, found.values())
    return found


def check_names(index: Path, files: Any) -> None:
    """Refuse an index that names anything but safetensors files in its own folder.

    Raises:
        StudentError: it does.
    """
    odd = sorted({repr(file) for file in files if not _is_own(index.parent, file)})
    if odd:
        raise StudentError(
            f"{index} names {', '.join(odd[:3])}; only safetensors files in the model's own folder are read. Save the "
            "model again (save_pretrained)."
        )


def _is_own(folder: Path, file: Any) -> bool:
    """Whether a name is that of a safetensors file below the folder, if there is one of the name."""
    if not isinstance(file, str) or not file.endswith(".safetensors") or "\0" in file:
        return False
    path = Path(file)
    return not path.is_absolute() and ".." not in path.parts


def read_settings(file: Path, damaged: str = "no usable settings") -> dict[str, Any]:
    """A JSON file of settings as plain data; ``damaged`` says in errors what the folder holds where it is none.

    Raises:
        StudentError: it is missing, too large for what it should be, or no JSON object.
    """
    try:
        if file.stat().st_size > _SETTINGS_BYTES:
            raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes")
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"{file.name} is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise StudentError(f"{file.parent} holds {damaged} ({error}); fetch or save the model again.") from error
    return found


def check_model(folder: Path) -> None:
    """Refuse a folder that holds no complete model, and say what it holds instead.

    Raises:
        StudentError: it has no ``config.json``.
    """
    if (folder / CONFIG).is_file():
        return
    if (folder / ADAPTER_CONFIG).is_file():
        base = read_settings(folder / ADAPTER_CONFIG, f"no usable {ADAPTER_CONFIG}").get("base_model_name_or_path")
        of, named = (f" of {base}", f" ({base})") if base else ("", ", which it does not name")
        raise StudentError(
            f"{folder} is a PEFT adapter{of}, and no complete model; give its base{named}, or the adapter merged into "
            "it (PEFT's merge_and_unload, then save_pretrained)."
        )
    if any(folder.glob("*.gguf")):
        raise StudentError(
            f"{folder} holds GGUF files, which are not read; give the model they were made from, as safetensors."
        )
    raise StudentError(
        f"{folder} holds no {CONFIG}, so it is no complete model; give a folder that save_pretrained wrote."
    )


def check_config(folder: Path) -> None:
    """Refuse a model whose configuration would have other code run or other files read, or more made than it has.

    Raises:
        StudentError: ``config.json`` is missing or no JSON object; it names a kernel of the hub or a file of weights;
            it asks for more layers than there are tensors; or there is an adapter beside it.
    """
    check_model(folder)
    settings = read_settings(folder / CONFIG, f"no usable {CONFIG}")
    if (folder / ADAPTER_CONFIG).exists():
        raise StudentError(
            f"{folder} holds an adapter beside a model, and it is not clear which is meant; put them into folders of "
            "their own."
        )
    if settings.get("transformers_weights") is not None:
        raise StudentError(
            f"{folder / CONFIG} names the file of its weights itself (transformers_weights); save the model again "
            "(save_pretrained)."
        )
    has_weights = (folder / WEIGHTS).is_file() or (folder / WEIGHTS_INDEX).is_file()
    tensors = len(weight_files(folder)) if has_weights else _MOST_LAYERS
    for key, value in _every(settings):
        if key.strip("_").startswith(("attn_implementation", "experts_implementation")) and "/" in json.dumps(value):
            raise StudentError(
                f"{folder / CONFIG} names a kernel to be fetched and run ({key}: {value!r}), which is refused; take it "
                "out, and name the attention in the study (attn_implementation) if another than SDPA is wanted."
            )
        if not isinstance(value, int):
            continue
        most = min(tensors, _MOST_LAYERS) if key in _LAYERS else _MOST_LABELS if key == "num_labels" else _MOST_COUNTED
        if key.startswith(("num_", "n_")) and value > most:
            has = f"its weights are {tensors} tensors" if key in _LAYERS else "no model has so many"
            raise StudentError(f"{folder / CONFIG}: {key} is {value}, and {has}; fetch or save the model again.")


def _every(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys with their values, those of mappings inside too."""
    for key, value in settings.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _every(value)
