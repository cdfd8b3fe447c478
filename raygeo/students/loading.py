"""Students as they come from disk or the Hub: a causal language model and its tokenizer, ready to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from raygeo.errors import StudentError
from raygeo.store import AnyPath

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Without any of these transformers would make up an empty tokenizer of the model's type.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def default_device() -> torch.device:
    """Return the current CUDA device when there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_student(
    path: AnyPath,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    device: torch.device | str = "cpu",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model, in evaluation mode on ``device``, and the tokenizer stored under ``path``.

    A folder is read without touching the network; any other ``owner/name`` is looked up on the Hugging Face Hub. Only
    safetensors weights are read and no code of the model's own is run. ``attention`` names the implementation
    (``"sdpa"`` or ``"eager"``, whose softmax is taken in fp32).

    Raises:
        StudentError: there is no such folder or no causal language model in it, weights are missing or of the wrong
            shape, there is no usable tokenizer, or it has more tokens than the model has embeddings.
    """
    tokenizer = load_tokenizer(path)
    model = _load_model(path, dtype, attention)
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise StudentError(
            f"student {str(path)!r}: the tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings; "
            "they do not belong together. Save the model's own tokenizer beside it."
        )
    nn.Module.to(model, device)
    return model, tokenizer


def load_tokenizer(path: AnyPath) -> PreTrainedTokenizerBase:
    """Load the tokenizer stored under ``path``, as ``load_student`` does; without a pad token it pads with end-of-text.

    Raises:
        StudentError: there is no such folder, no tokenizer in it, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    source, local = _locate(path)
    if local and not any(Path(source, name).is_file() for name in _TOKENIZER_FILES):
        raise StudentError(f"student {str(path)!r}: no tokenizer in this folder; save the model's own beside it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise StudentError(f"student {str(path)!r}: no usable tokenizer ({_first_line(error)}).") from error
    if tokenizer.eos_token_id is None:
        raise StudentError(
            f"student {str(path)!r}: its tokenizer has no end-of-text token, so completions could not end. "
            "Set eos_token in tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_model(path: AnyPath, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    source, local = _locate(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=local,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise StudentError(f"student {str(path)!r}: no usable causal language model ({_first_line(error)}).") from error
    model, report = loaded
    wrong = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if wrong:
        raise StudentError(
            f"student {str(path)!r}: {len(wrong)} parameters are missing from its weights or have another shape than "
            f"config.json says ({', '.join(wrong[:3])}); they would be random. Fetch or save the model again."
        )
    return model.eval()


def _locate(path: AnyPath) -> tuple[str, bool]:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder), True
    if not isinstance(path, str) or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise StudentError(f"student {str(path)!r}: no such folder; give the folder that holds config.json.")
    return path, False


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
