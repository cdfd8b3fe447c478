"""Where a model is: a folder, or what the Hugging Face Hub has under an id."""

from pathlib import Path

from raygeo.errors import StudentError
from raygeo.store import AnyPath

SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".spm", ".bpe", ".codes", ".vocab")
"""Endings of the files that a model, an adapter or a delta and its tokenizer are read from."""


def find_model(model: AnyPath) -> Path:
    """Folder of a model or adapter: the one named, which never touches the network, or that of a hub id, fetched.

    A hub id is a string of the form ``owner/name`` that is not a folder here. Its configuration, tokenizer and
    safetensors are fetched once, to where ``huggingface_hub`` keeps them.

    Raises:
        StudentError: there is no such folder, or it cannot be fetched.
    """
    source = Path(model).expanduser()
    if source.is_dir():
        return source
    if not isinstance(model, str) or model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise StudentError(f"the model {str(model)!r} is neither a folder nor a hub id (owner/name).")
    return _fetch(model)


def _fetch(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StudentError(
            f"the model {model!r} is not a folder here and cannot be fetched from the hub: {error}"
        ) from error
