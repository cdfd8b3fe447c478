"""Students as they come from disk or the Hub: a causal language model and its tokenizer, ready to use."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import field_validator, model_validator
from torch import nn

from raygeo.errors import StudentError
from raygeo.models.attention import check_name, is_flash
from raygeo.models.folder import CONFIG, check_config, check_model, read_settings, weight_files
from raygeo.models.hub import find_model
from raygeo.models.tensors import TensorFiles
from raygeo.settings import Settings
from raygeo.store import AnyPath

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")
# Without any of these transformers would make up an empty tokenizer of the model's type.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Constants that earlier versions of transformers stored beside the weights: masks, rotary frequencies, positions.
_BUFFERS = re.compile(r"(^|\.)(inv_freq|masked_bias|causal_mask|position_ids|(attn|attention|self_attention)\.bias)$")


_MORE, _CONSTANTS = 4, 1 << 24
"""How many times as many numbers as its files a model may have (tied and repeated ones), and how many constants."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DeviceMap = Literal["auto"] | dict[str, int | str]


class Loading(Settings):
    """How a student is held wherever it is measured and not trained."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """What its weights are held in. In ``bf16`` LoRA deltas are applied beside their layers, as training applies them,
    and complete ones are added in fp32 and rounded once; curvature, sharpness and coherence take fp32 all the same."""
    device_map: DeviceMap | None = None
    """Where its modules go: nothing for one device, ``auto`` to divide it over all that are visible, or places by
    module, as transformers has it."""
    attn_implementation: str | None = None
    """The attention it runs with (``attention.PACKAGES``); by default SDPA where the family has it. Second derivatives
    need ``sdpa`` or ``eager``; whatever is taken in fp32 has the default in the place of a flash attention."""

    @field_validator("attn_implementation")
    @classmethod
    def _trusted(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

    @model_validator(mode="after")
    def _half_precision(self) -> Self:
        if is_flash(self.attn_implementation) and self.dtype != "bf16":
            raise ValueError(f"attn_implementation {self.attn_implementation!r} takes no fp32; give dtype bf16 with it")
        return self

    @property
    def keyed(self) -> tuple[dict[str, Any], ...]:
        """What it adds to the content keys of numbers measured so: nothing by default."""
        changed = self.model_dump(mode="json", exclude_defaults=True)
        return (changed,) if changed else ()

    def load(
        self, path: AnyPath, *, dtype: torch.dtype | None = None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """``load_student`` so, on the GPU if there is one; ``dtype`` instead of its own where it is given."""
        held = dtype or _DTYPES[self.dtype]
        unfit = is_flash(self.attn_implementation) and held == torch.float32
        return load_student(
            path,
            dtype=held,
            attention=None if unfit else self.attn_implementation,
            device=default_device(),
            device_map=self.device_map,
        )


def default_device() -> torch.device:
    """Return the current CUDA device when there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_student(
    path: AnyPath,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    device: torch.device | str = "cpu",
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model as ``load_model`` does, on ``device`` or as ``device_map`` says, and the tokenizer under ``path``.

    Raises:
        StudentError: as ``load_model``; or there is no usable tokenizer, or it has more tokens than the model has
            embeddings.
    """
    tokenizer = load_tokenizer(path)
    model = load_model(path, dtype=dtype, attention=attention, device_map=device_map)
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise StudentError(
            f"student {str(path)!r}: the tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings; "
            "they do not belong together. Save the model's own tokenizer beside it."
        )
    if device_map is None:
        nn.Module.to(model, device)
    return model, tokenizer


def load_tokenizer(path: AnyPath) -> PreTrainedTokenizerBase:
    """Load the tokenizer stored under ``path``, as ``load_model`` does; without a pad token it pads with end-of-text.

    Its ``stop_ids`` are the tokens that the model's generation settings end at (``Renderer.stop_ids``).

    Raises:
        StudentError: there is no such folder, no tokenizer in it, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    source = find_model(path)
    if not any((source / name).is_file() for name in _TOKENIZER_FILES):
        check_model(source)
        raise StudentError(f"student {str(path)!r}: no tokenizer in this folder; save the model's own beside it.")
    if (source / CONFIG).is_file():  # it is read too
        check_config(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each family's own
        raise StudentError(f"student {str(path)!r}: no usable tokenizer ({_first_line(error)}).") from error
    if tokenizer.eos_token_id is None:
        raise StudentError(
            f"student {str(path)!r}: its tokenizer has no end-of-text token, so completions could not end. "
            "Set eos_token in tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.stop_ids = _generation_ends(source, len(tokenizer))
    return tokenizer


def load_model(
    path: AnyPath,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    device_map: DeviceMap | None = None,
) -> PreTrainedModel:
    """Load the causal language model stored under ``path``, in evaluation mode, on the CPU or as ``device_map`` says.

    ``path`` is a folder or a hub id (``hub.find_model``). Only safetensors weights are read and no code of the model's
    own is run. ``attention`` names the implementation (``attention.PACKAGES``); by default SDPA where the family has
    it. With ``device_map``, which takes accelerate, modules are on several devices and hidden states move between them.

    Raises:
        StudentError: there is no such folder or no causal language model in it, or its weights are missing, of the
            wrong shape, or more than the model has; or the devices do not hold it.
    """
    from transformers import AutoModelForCausalLM

    source = find_model(path)
    config = read_config(path)
    _check_sizes(source, config)
    try:
        attention = attention or best_attention(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(source),
            dtype=dtype,
            attn_implementation=attention,
            device_map=device_map,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except Exception as error:  # each family's own
        raise StudentError(f"student {str(path)!r}: no usable causal language model ({_first_line(error)}).") from error
    model, report = loaded
    wrong = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if wrong:
        raise StudentError(
            f"student {str(path)!r}: {len(wrong)} parameters are missing from its weights or have another shape than "
            f"config.json says ({', '.join(wrong[:3])}); they would be random. Fetch or save the model again."
        )
    odd = sorted(name for name in report["unexpected_keys"] if not is_buffer(name))
    if odd:
        raise StudentError(
            f"student {str(path)!r}: its weights hold {len(odd)} tensors that a {type(model).__name__} of its "
            f"config.json does not have ({', '.join(odd[:3])}), layers left over, perhaps; weights and config.json do "
            "not belong together. Fetch or save the model again."
        )
    if away := [name for name, value in model.named_parameters() if value.is_meta]:
        raise StudentError(
            f"student {str(path)!r}: {len(away)} parameters ({away[0]}, ...) would lie on the CPU or the disk, as "
            f"device_map={device_map!r} finds no room for them on a device. Give the process more devices "
            "(geometry.actors.gpus), or hold the student in bf16 (student.dtype)."
        )
    if len({value.device for value in model.parameters()}) > 1:
        join_ends(model)
    return model.eval()


def join_ends(model: PreTrainedModel) -> None:
    """Let a model that is divided over devices take ids, and give final states and logits, on one: its embeddings'."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    first = model.get_input_embeddings().weight.device
    head: Any = model.get_output_embeddings()
    remove_hook_from_module(head).to(first)
    add_hook_to_module(model.get_decoder(), AlignDevicesHook(execution_device=first, io_same_device=True), append=True)


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name in a model's files is a constant that its parameters say nothing about."""
    return _BUFFERS.search(name) is not None


def read_config(path: AnyPath) -> PreTrainedConfig:
    """Read the configuration stored under ``path``.

    Raises:
        StudentError: there is none that transformers understands.
    """
    from transformers import AutoConfig

    source = find_model(path)
    check_config(source)
    try:
        return AutoConfig.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each family's own
        raise StudentError(f"student {str(path)!r}: no usable config.json ({_first_line(error)}).") from error


def model_shape(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the causal language model of ``config`` without any weights (on the meta device).

    Raises:
        StudentError: transformers has no causal language model for it, or cannot build it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    except Exception as error:  # each family's own
        raise StudentError(f"a {config.model_type} model cannot be built ({_first_line(error)}).") from error


def context_length(config: PreTrainedConfig) -> int | None:
    """Longest sequence, in tokens, that the positions of a model of ``config`` allow; None where there is no limit."""
    text = config.get_text_config()
    return next((int(n) for name in _CONTEXTS if (n := getattr(text, name, None)) is not None), None)


def best_attention(config: PreTrainedConfig) -> str:
    """SDPA where the family of ``config`` has it, else ``"eager"`` (Gemma 2, GPT-OSS, BLOOM, ...)."""
    from transformers import AutoModelForCausalLM

    family: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return "sdpa" if family is None or family._supports_sdpa else "eager"


def _check_sizes(source: Path, config: PreTrainedConfig) -> None:
    """Refuse a configuration whose model has far more numbers than its files, before any of them is allocated.

    Raises:
        StudentError: it has; or its files are damaged.
    """
    from transformers import AutoModelForCausalLM

    files = weight_files(source)
    stored = TensorFiles({key: source / file for key, file in files.items()})
    numbers = sum(math.prod(stored.shape(key)) for key in files)
    family: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if family is None:
        return
    try:
        with torch.device("meta"):
            model = family(copy.deepcopy(config))
    except Exception as error:  # each family's own
        raise StudentError(f"student {str(source)!r}: no usable config.json ({_first_line(error)}).") from error
    for what, made in (("parameters", model.parameters()), ("constants", model.buffers())):
        wanted = sum(value.numel() for value in made)
        if wanted > _MORE * numbers + _CONSTANTS:
            raise StudentError(
                f"student {str(source)!r}: a model of its config.json has {wanted:,} {what}, and its weights are "
                f"{numbers:,} numbers; they do not belong together. Fetch or save the model again."
            )


def _generation_ends(source: Path, vocabulary: int) -> tuple[int, ...]:
    """End-of-text tokens of ``generation_config.json``, or else of ``config.json``, that are in the vocabulary."""
    for file in (source / "generation_config.json", source / "config.json"):
        if not file.is_file():
            continue
        ends = read_settings(file, f"a {file.name} that is not JSON of settings").get("eos_token_id")
        if ends is None:
            continue
        given = ends if isinstance(ends, list) else [ends]
        if any(isinstance(end, bool) or not isinstance(end, int) for end in given):
            raise StudentError(f"{file}: eos_token_id is {ends!r}, where ids of tokens belong; fetch the model again.")
        return tuple(end for end in given if 0 <= end < vocabulary)
    return ()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
