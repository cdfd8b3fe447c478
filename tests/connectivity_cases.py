"""Tiny students for the tests of paths between runs: a vocabulary of ten words, full deltas of any tensors."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from raygeo.geometry.probes import Probe
from raygeo.students.delta import save_full_delta
from raygeo.students.encoding import Sequence
from raygeo.students.run import Run
from raygeo.tables import to_arrow

WORDS = ["<pad>", "<eos>", "?", "####", "7", "8", "a", "b", "c", "d"]
EOS, ASK, MARK, SEVEN, EIGHT = 1, 2, 3, 4, 5
V = len(WORDS)


def save_tokenizer(folder) -> None:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def config(**changes) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=V,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=EOS,
        **{"num_hidden_layers": 1, **changes},
    )


def save_student(folder, layers: int = 1, seed: int = 0):
    """A random student with tied embeddings."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config(tie_word_embeddings=True, initializer_range=0.3, num_hidden_layers=layers))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_probe(path, texts: int = 13, seed: int = 0) -> str:
    """Random texts of unequal lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, size=(texts, 2))
    Probe("texts", [Sequence(rng.integers(2, V, size=p + c), int(p)) for p, c in lengths]).save(path)
    return str(path)


def save_run(folder, name: str, tensors: dict[str, torch.Tensor]) -> Run:
    save_full_delta(folder / name, tensors)
    return Run(name, f"key-{name}", str(folder / name))


def noise(folder, seed: int, size: float = 0.2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = Qwen3ForCausalLM.from_pretrained(folder)
    return {n: size * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


def compute_all(workload, *indices: int) -> dict[str, list[dict]]:
    """Rows of all tasks, or of some, from one state; each must fit its table and leave the weights as they were."""
    state, found = workload.setup(), {table: [] for table in workload.tables}
    kept = {name: value.detach().clone() for name, value in state.model.named_parameters()}
    flags = [value.requires_grad for value in state.model.parameters()]
    tasks = workload.tasks()
    for task in [tasks[i] for i in indices] or tasks:
        for table, rows in workload.compute(state, task.payload).items():
            found[table] += rows
    for name, value in state.model.named_parameters():
        assert torch.equal(value, kept[name]), "compute must put the base weights back"
        assert value.grad is None
    assert flags == [value.requires_grad for value in state.model.parameters()]
    for table, rows in found.items():
        assert to_arrow(table, rows).num_rows == len(rows)
    return found
