"""A tiny student, texts for it, and runs that moved its blocks."""

import numpy as np
import pytest
import torch
from tiny import save_words, tiny_qwen

from raygeo.data.probes import Probe
from raygeo.models.batches import TokenSequence
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run
from raygeo.tables import BASE

WORDS = 20


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    """The model and its folder."""
    model = tiny_qwen(WORDS, initializer_range=0.2, pad_token_id=0, eos_token_id=1)
    folder = tmp_path_factory.mktemp("student")
    model.save_pretrained(folder)
    save_words(folder, [f"w{i}" for i in range(WORDS)])
    return model, folder


@pytest.fixture(scope="session")
def probe():
    """24 texts of unequal length whose prompts end alike."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, size=(24, 2))
    ids = [rng.integers(3, WORDS, size=p + c) for p, c in lengths]
    for row, (prompt, _) in zip(ids, lengths, strict=True):
        row[prompt - 1] = 2
    return Probe("texts", [TokenSequence(row, int(prompt)) for row, (prompt, _) in zip(ids, lengths, strict=True)])


@pytest.fixture(scope="session")
def probe_file(probe, tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "probe.npz"
    probe.save(path)
    return path


@pytest.fixture
def runs(student, tmp_path):
    """The base and two runs, all matrices of whose blocks moved."""
    model, _ = student
    found = [Run(BASE, "k0", None)]
    for seed in (1, 2):
        noise = torch.Generator().manual_seed(seed)
        blocks = {n: p.shape for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
        save_full_delta(tmp_path / f"d{seed}", {n: 0.1 * torch.randn(s, generator=noise) for n, s in blocks.items()})
        found.append(Run(f"r{seed}", f"k{seed}", str(tmp_path / f"d{seed}")))
    return found


@pytest.fixture
def merged(student, runs):
    """By run name, a model of its own with the run's weights."""
    from transformers import Qwen3ForCausalLM

    models = {}
    for run in runs:
        models[run.name] = Qwen3ForCausalLM.from_pretrained(student[1]).eval()
        with torch.no_grad():
            for name, entry in (run.open() or {}).items():
                models[run.name].get_parameter(name).add_(entry.dense())
    return models
