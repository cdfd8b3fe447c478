"""Small models and deltas for the tests of weight geometry."""

import json
import pickle
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from student_cases import tiny_qwen
from torch import Tensor
from transformers import Qwen3ForCausalLM

from raygeo.students.delta import ADAPTER_FILE, LowRank
from raygeo.tables import to_arrow
from raygeo.workload import Rows, Workload

Q, V = "model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.v_proj"


def gaussian(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(out: int, into: int, rank: int, seed: int, scale: float = 2.0) -> LowRank:
    return LowRank(gaussian(out, rank, seed=seed), gaussian(rank, into, seed=seed + 1000), scale)


def tiny_model(seed: int = 0, tied: bool = True) -> Qwen3ForCausalLM:
    return tiny_qwen(48, seed, tie_word_embeddings=tied)


def tiny_peft(seed: int = 0, **options) -> PeftModel:
    """A PEFT model over ``tiny_model`` whose B factors are random instead of zero."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options})
    model = get_peft_model(tiny_model(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def all_rows(workload: Workload) -> dict[str, Rows]:
    """Rows of every task by table, then what is concluded from them; every row fits its table's schema."""
    workload = pickle.loads(pickle.dumps(workload))
    state, rows = workload.setup(), {table: [] for table in workload.tables}
    for task in workload.tasks():
        for table, made in workload.compute(state, task.payload).items():
            rows[table] += made
    last = workload.conclude({table: to_arrow(table, made) for table, made in rows.items()})
    for table, made in last.items():
        to_arrow(table, made)
        rows[table] += made
    return rows


def save_lora(folder: Path, entries: dict[str, LowRank]) -> Path:
    """Write entries of one rank and scale, by module name, as PEFT does."""
    first = next(iter(entries.values()))
    rank = len(first.a)
    assert {(len(entry.a), entry.scale) for entry in entries.values()} == {(rank, first.scale)}
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": first.scale * rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model."
    factors = {f"{prefix}{name}.lora_A.weight": entry.a.contiguous() for name, entry in entries.items()}
    factors |= {f"{prefix}{name}.lora_B.weight": entry.b.contiguous() for name, entry in entries.items()}
    save_file(factors, folder / ADAPTER_FILE)
    return folder
