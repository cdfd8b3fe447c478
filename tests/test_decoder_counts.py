"""The closed forms that the figures of one card are held against, beside torch's own counter of operations."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks.decoder import QWEN3_4B, TINY
from raygeo.models.loading import model_shape
from raygeo.models.lora import LoraSettings, attach_lora

ROWS, LENGTH = 3, 12
LENGTHS, PREDICTED = [LENGTH] * ROWS, ROWS * (LENGTH - 1)


def student():
    return AutoModelForCausalLM.from_config(TINY.config(), attn_implementation="eager").eval()


def counted(model, *, backward):
    """Operations over rows of which all tokens but the last predict another."""
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.get_output_embeddings()(hidden)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def test_a_forward_pass():
    above = TINY.attention(LENGTHS)  # eager attention multiplies what it masks, too
    assert counted(student(), backward=False) == TINY.forward(LENGTHS, PREDICTED) + above


def test_training_every_weight():
    above = 3 * TINY.attention(LENGTHS)
    assert counted(student(), backward=True) == TINY.full_training(LENGTHS, PREDICTED) + above


def test_training_adapters():
    model = attach_lora(student(), LoraSettings(r=4), 0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TINY.adapters(4)
    above = 3 * TINY.attention(LENGTHS)
    # Nothing asks for the gradient of the embeddings, which queries, keys and values of the first layer would give.
    keys = TINY.num_key_value_heads * TINY.head_dim
    first = 2 * sum(LENGTHS) * TINY.hidden_size * (TINY.attention_width + 2 * keys + 3 * 4)
    found = counted(model.base_model.model, backward=True)
    assert found == TINY.lora_training(LENGTHS, PREDICTED, 4) + above - first


def test_the_shape_is_that_of_qwen3_4b():
    model = model_shape(QWEN3_4B.config())
    assert sum(p.numel() for p in model.parameters()) == 4_022_468_096
    layers = [p for name, p in model.named_parameters() if "_proj" in name]
    assert sum(p.numel() for p in layers) == QWEN3_4B.body
