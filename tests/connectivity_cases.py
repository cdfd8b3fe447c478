"""Tiny students for the tests of paths between runs: a vocabulary of ten words, full deltas of any tensors."""

import numpy as np
import torch
from tiny import TEN_WORDS, save_words, ten_words
from transformers import Qwen3ForCausalLM

from raygeo.data.exam import Exam
from raygeo.data.probes import Probe
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.batches import TokenSequence
from raygeo.models.delta import save_full_delta
from raygeo.models.loading import load_tokenizer
from raygeo.models.run import Run
from raygeo.tables import to_arrow

EOS, ASK, MARK, SEVEN, EIGHT = 1, 2, 3, 4, 5
V = len(TEN_WORDS)


def save_student(folder, layers: int = 1):
    """A random student of ten words."""
    ten_words(num_hidden_layers=layers).save_pretrained(folder)
    save_words(folder)
    return folder


def save_probe(path, texts: int = 13, seed: int = 0) -> str:
    """Random texts of unequal lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, size=(texts, 2))
    Probe("texts", [TokenSequence(rng.integers(2, V, size=p + c), int(p)) for p, c in lengths]).save(path)
    return str(path)


def exam(student, problems) -> Exam:
    """Problems put to a student in its own tokens, judged by equal numbers."""
    return Exam(problems, "exact", PlainRenderer(load_tokenizer(student)))


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
    kept = {name: value.detach().clone() for name, value in state.student.model.named_parameters()}
    flags = [value.requires_grad for value in state.student.model.parameters()]
    tasks = workload.tasks()
    for task in [tasks[i] for i in indices] or tasks:
        for table, rows in workload.compute(state, task.payload).items():
            found[table] += rows
    for name, value in state.student.model.named_parameters():
        assert torch.equal(value, kept[name]), "compute must put the base weights back"
        assert value.grad is None
    assert flags == [value.requires_grad for value in state.student.model.parameters()]
    for table, rows in found.items():
        assert to_arrow(table, rows, workload.tables[table]).num_rows == len(rows)
    return found
