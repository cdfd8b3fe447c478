"""The models of the tests: students of two blocks, one that knows ten words, and one with dense second derivatives.

Tests that are about a family of models build that family, of the same ``SHAPE`` if it has these words.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.word_problems import word_tokenizer

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 64,
}  # fmt: skip
"""How large the models are, in the words of Llama's family and of those like it."""
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
BLOOM = BloomConfig(vocab_size=24, hidden_size=32, n_layer=1, n_head=4)
TINY = Architecture(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, context=128)
TEN_WORDS = ["<pad>", "<eos>", "?", "####", "7", "8", "a", "b", "c", "d"]


def tiny_qwen(vocabulary: int = 48, seed: int = 0, **changes) -> Qwen3ForCausalLM:
    """A random Qwen3 with two layers, tied embeddings and SDPA, exact in fp64, unless ``changes`` say otherwise."""
    shape = SHAPE | {"tie_word_embeddings": True, "attn_implementation": "sdpa"}
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, **(shape | changes))).eval()


def tiny_gpt2(vocabulary: int = 48, seed: int = 0, **changes) -> GPT2LMHeadModel:
    """A random GPT-2, which has learned positions and holds the weights of its layers transposed."""
    torch.manual_seed(seed)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **(shape | changes))).eval()


def decided_qwen(seed: int) -> Qwen3ForCausalLM:
    """A ``tiny_qwen`` of 24 words whose predictions are far from uniform."""
    return tiny_qwen(24, seed, initializer_range=0.2)


def tiny_peft(seed: int = 0, **options) -> PeftModel:
    """A PEFT model over ``tiny_qwen`` whose B factors are random instead of zero."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options})
    model = get_peft_model(tiny_qwen(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def save_model(folder: Path, seed: int | None = None, dtype: torch.dtype = torch.float32, tied: bool = True) -> Path:
    """Save ``tiny_qwen`` in shards, as full fine-tunes are, every weight moved a little if there is a ``seed``."""
    model = tiny_qwen(tie_word_embeddings=tied)
    if seed is not None:
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * seed + i)
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(folder, max_shard_size="10KB")
    return folder


def save_tiny_student(folder: Path, seed: int = 0, context: int = TINY.context) -> Path:
    """Save an untrained student of word problems, of about 30 k parameters."""
    tokenizer = word_tokenizer()
    model = build_model(TINY.model_copy(update={"context": context}), tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ten_words(seed: int = 0, **changes) -> Qwen3ForCausalLM:
    """A random Qwen3 of ``TEN_WORDS`` with one layer."""
    shape = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 16, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": None, "initializer_range": 0.3,
    }  # fmt: skip
    return tiny_qwen(len(TEN_WORDS), seed, **(shape | changes))


def save_words(folder: Path, words: Sequence[str] = TEN_WORDS) -> None:
    """Save a tokenizer of these words; the first three pad, end, and stand for what is not known."""
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[2]))
    core.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token=words[0], eos_token=words[1]).save_pretrained(folder)


class TinyLM(nn.Module):
    """Running means of embeddings through one tanh layer to tied logits over seven tokens, fp64.

    ``spare`` has no influence.
    """

    VOCABULARY = 7

    def __init__(self, width: int = 4, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding(self.VOCABULARY, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, self.VOCABULARY, bias=False)
        self.spare = nn.Parameter(torch.zeros(3))
        self.double().eval()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        self.head.weight = self.embed.weight
        text = SimpleNamespace(vocab_size=self.VOCABULARY)
        self.config = SimpleNamespace(get_text_config=lambda: text)

    def get_decoder(self):
        return self.decode

    def get_output_embeddings(self):
        return self.head

    def decode(self, input_ids, attention_mask=None, use_cache=False):
        h = self.embed(input_ids)
        steps = torch.arange(1, h.shape[1] + 1, dtype=h.dtype)[:, None]
        return SimpleNamespace(last_hidden_state=torch.tanh(self.mix(h.cumsum(1) / steps)))

    def forward(self, input_ids, attention_mask=None, use_cache=False, logits_to_keep=0):
        h = self.decode(input_ids).last_hidden_state
        return SimpleNamespace(logits=self.head(h[:, logits_to_keep]))
