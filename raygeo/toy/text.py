"""A small student made from plain text: its own byte-level BPE tokenizer and a model of two million parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from raygeo.models.loading import default_device
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.pretrain import OnStep, PretrainSettings, pretrain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<pad>", "<bos>", "<eos>"]
_BYTES = 256


class TextStudent(Settings):
    """The tokenizer, the model and its training."""

    vocabulary: int = Field(2048, ge=_BYTES + len(_SPECIAL))
    """At most so many tokens, the 256 bytes included."""
    architecture: Architecture = Architecture(
        hidden=192, layers=4, heads=4, kv_heads=2, head_dim=48, intermediate=576, init_std=0.02, context=1024
    )
    """The model."""
    model_seed: int = 0
    """Seed of the initial weights."""
    training: PretrainSettings = PretrainSettings(steps=650, batch_size=16, loss_on="all")
    """How it is trained."""


def make_text_student(
    settings: TextStudent, texts: list[tuple[str, str]], folder: AnyPath, progress: OnStep | None = None
) -> None:
    """Train tokenizer and model from scratch on (prompt, completion) pairs and save them as a Hugging Face folder.

    Raises:
        StudentError: ``texts`` is empty or its longest text exceeds the model's context.
    """
    tokenizer = train_tokenizer(texts, settings.vocabulary)
    model = build_model(settings.architecture, tokenizer, settings.model_seed).to(default_device())  # type: ignore[arg-type]
    pretrain(model, tokenizer, texts, settings.training, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(texts: list[tuple[str, str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (Radford et al. 2019) on prompts and completions.

    Any text decodes back to itself; digits are one token each; prompts start with ``<bos>``.
    """
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((part for pair in texts for part in pair), trainer)
    backend.post_processor = processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", _SPECIAL.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
