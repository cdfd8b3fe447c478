"""Where a model is: a folder, or what the Hugging Face Hub has under an id."""

import re
from pathlib import Path

from raygeo.errors import StudentError
from raygeo.models.folder import SUFFIXES, check_files
from raygeo.paths import local_path
from raygeo.store import AnyPath

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_hub_id(model: str) -> bool:
    """Whether a text has the form of a hub id, ``owner/name``."""
    return _HUB_ID.fullmatch(model) is not None


def find_model(model: AnyPath) -> Path:
    """Folder of a model or adapter: the one named, which never touches the network, or that of a hub id, fetched.

    A hub id is a string of the form ``owner/name`` that is not a folder here. Its configuration, tokenizer and
    safetensors are fetched once, to where ``huggingface_hub`` keeps them.

    Raises:
        StudentError: there is no such folder, or it cannot be fetched; or what has the names of a model's files in it
            is no ordinary file (``folder.check_files``).
    """
    source = here(model)
    folder = _fetch(str(model)) if source is None else source
    check_files(folder)
    return folder


def here(model: AnyPath) -> Path | None:
    """The folder of a model that is on this machine; None of a hub id. The network is never touched.

    Raises:
        StudentError: it is neither.
    """
    try:
        source = local_path(model)
        known, is_file = source.is_dir(), source.is_file()
    except (ValueError, OSError) as error:
        raise StudentError(f"the model {str(model)!r} is neither a folder nor a hub id: {error}.") from error
    if is_file:
        also = ", and GGUF is not read" if source.suffix == ".gguf" else ""
        raise StudentError(
            f"the model {str(model)!r} is a file{also}; give a folder with config.json, safetensors and a tokenizer."
        )
    if not known and not (isinstance(model, str) and is_hub_id(model)):
        place = "" if source.is_absolute() else f"; it was looked for in {Path.cwd()}"
        raise StudentError(f"the model {str(model)!r} is neither a folder nor a hub id (owner/name){place}.")
    return source if known else None


def _fetch(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StudentError(
            f"the model {model!r} is not a folder here and cannot be fetched from the hub: {error}"
        ) from error
