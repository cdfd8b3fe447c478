"""Deltas for the tests of weight geometry, what workloads make of them, and a count of what is read."""

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor

from raygeo.analyses.similarity.workload import Similarity, SimilaritySettings
from raygeo.models.delta import ADAPTER_FILE, LowRank, save_full_delta
from raygeo.models.run import Run
from raygeo.models.tensors import TensorFiles
from raygeo.store import AnyPath
from raygeo.tables import to_arrow
from raygeo.workload import Rows, Workload

Q, V = "model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.v_proj"


def gaussian(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(out: int, into: int, rank: int, seed: int, scale: float = 2.0) -> LowRank:
    return LowRank(gaussian(out, rank, seed=seed), gaussian(rank, into, seed=seed + 1000), scale)


def all_rows(workload: Workload) -> dict[str, Rows]:
    """Rows of every task by table, then what is aggregated from them; every row fits its table's schema."""
    workload = pickle.loads(pickle.dumps(workload))
    state, rows = workload.setup(), {table: [] for table in workload.tables}
    for task in workload.tasks():
        for table, made in workload.compute(state, task.payload).items():
            rows[table] += made.to_pylist() if isinstance(made, pa.Table) else made
    last = workload.aggregate({table: to_arrow(table, made, workload.tables[table]) for table, made in rows.items()})
    for table, made in last.items():
        to_arrow(table, made, workload.tables[table])
        rows[table] += made
    return rows


def moments_of(runs: Sequence[Run], base: AnyPath) -> pa.Table:
    """The table ``moments`` of the analysis of similarity."""
    rows = all_rows(Similarity(SimilaritySettings(), runs, base))["moments"]
    return to_arrow("moments", rows, Similarity.tables["moments"])


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


def full_run(folder: Path, name: str, tensors: dict[str, Tensor]) -> Run:
    """A run that trained all weights, of this change."""
    save_full_delta(folder / name, tensors)
    return Run(name, name, str(folder / name))


def lora_run(folder: Path, name: str, entries: dict[str, LowRank]) -> Run:
    """A run with adapters, of this change."""
    return Run(name, name, str(save_lora(folder / name, entries)))


def differences(tuned: Path, base: Path) -> dict[str, Tensor]:
    """Tuned minus base in fp32 by name, from models loaded whole."""
    from transformers import AutoModelForCausalLM

    after, before = (
        dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
        for folder in (tuned, base)
    )
    return {name: (after[name] - before[name]).detach() for name in after}


class Reads:
    """Counts the values read of each tensor, by folder and name, and the largest part, while ``monkeypatch`` lasts.

    Deltas must be opened after it.
    """

    def __init__(self, monkeypatch):
        self.values: Counter[tuple[str, str]] = Counter()
        self.largest = 0
        for how in ("read", "tensor"):
            monkeypatch.setattr(TensorFiles, how, self._counting(getattr(TensorFiles, how)))

    def _counting(self, original):
        def read(files: TensorFiles, key: str, *index):
            part = original(files, key, *index)
            self.values[files.files[key].parent.name, key] += part.numel()
            self.largest = max(self.largest, part.numel())
            return part

        return read
