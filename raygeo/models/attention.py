"""Which kernels compute attention, by the names that transformers has for them, and whether they can be used here."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from raygeo.errors import StudentError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PACKAGES = {
    "sdpa": None,
    "eager": None,
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "kernels-community/flash-attn2": "kernels",
    "kernels-community/flash-attn3": "kernels",
    "kernels-community/vllm-flash-attn3": "kernels",
}
"""What may be asked for, and the module each needs. Kernels of the hub are code that is fetched and run, so none but
these are taken, all of Hugging Face's own organisation."""
_SOURCES = {
    "flash_attn": "pip install flash-attn --no-build-isolation",
    "flash_attn_interface": "FlashAttention 3 is built from its sources",
    "kernels": "pip install kernels",
}


def is_flash(name: str | None) -> bool:
    """Whether an attention of this name works on a GPU in half precision alone."""
    return name is not None and "flash" in name


def check_name(name: str) -> str:
    """Return the name of an attention that may be asked for.

    Raises:
        ValueError: it is none, or a kernel of the hub that is not among those trusted.
    """
    if name not in PACKAGES:
        foreign = " Kernels of other owners are not taken, because they run code of theirs." if "/" in name else ""
        raise ValueError(f"it is one of {', '.join(PACKAGES)}.{foreign}")
    return name


def check_attention(config: PreTrainedConfig, name: str) -> None:
    """Refuse an attention that a student of ``config`` cannot be computed with here; no weights are needed.

    Raises:
        StudentError: what it needs is not installed, or the family does not have it.
    """
    from transformers import AutoModelForCausalLM

    module = PACKAGES[name]
    if module is not None and find_spec(module) is None:
        raise StudentError(
            f"attn_implementation {name!r} needs the module {module!r}, which is not installed ({_SOURCES[module]}); "
            "install it on every node, or take sdpa."
        )
    family: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if family is None:
        return
    has = family._supports_flash_attn if is_flash(name) else family._supports_sdpa or name == "eager"
    if not has:
        raise StudentError(
            f"attn_implementation {name!r}: {family.__name__} does not have it in transformers; leave it out, and "
            f"attention is computed by {'sdpa' if family._supports_sdpa else 'eager'}."
        )


def check_used(model: PreTrainedModel, name: str) -> None:
    """Refuse a model for which transformers has put another attention in the place of the one asked for.

    Raises:
        StudentError: it has.
    """
    used = model.config.get_text_config()._attn_implementation
    if used != name:
        raise StudentError(f"attn_implementation {name!r} was asked for, and transformers took {used!r}; name that.")
