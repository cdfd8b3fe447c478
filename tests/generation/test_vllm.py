"""The engine that is vLLM, against the local one: runs where vLLM is installed, on a GPU or with its CPU build."""

from itertools import chain

import pytest
import torch
from peft import LoraConfig, get_peft_model
from study_cases import draw_rollouts

pytest.importorskip("vllm")

from raygeo.errors import StudentError
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import PlainRenderer
from raygeo.generation.vllm import VllmSettings
from raygeo.models.loading import load_student
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.word_problems import word_tokenizer

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SETTINGS = VllmSettings(dtype="float32", max_model_len=128, max_lora_rank=8, gpu_memory_utilization=0.2)
PROMPTS = [row["prompt"] for row in draw_rollouts(6, samples=1).to_pylist()]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    shape = Architecture(
        hidden=64, layers=2, heads=2, kv_heads=1, head_dim=64, intermediate=64, context=128, init_std=0.3
    )
    folder, tokenizer = tmp_path_factory.mktemp("vllm") / "student", word_tokenizer()
    build_model(shape, tokenizer, seed=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(student):
    """Two LoRA runs of other modules and ranks that write otherwise than the base."""
    found = []
    for seed, targets in ((1, ["q_proj", "v_proj"]), (2, ["q_proj", "o_proj"])):
        model = get_peft_model(load_student(student)[0], LoraConfig(r=4, target_modules=targets))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.copy_(0.2 * torch.randn(value.shape, generator=generator))
        model.save_pretrained(student.parent / f"run{seed}")
        found.append(Run(f"run{seed}", f"key{seed}", str(student.parent / f"run{seed}")))
    return found


def test_vllm_writes_what_the_local_engine_writes_with_the_base_runs_and_mixtures(student, runs):
    renderer = PlainRenderer(load_student(student)[1])
    local = ResidentStudent.load(student, runs)
    adapted = SETTINGS.students(student, runs)
    first, second = (run.open() for run in runs)
    greedy, seen = Request(PROMPTS, max_new_tokens=10), []
    for mixture in ([], [(1.0, first)], [(0.3, first), (0.7, second)], []):
        with local.weights.mixed(mixture) as model:
            expected = LocalEngine(model, renderer).generate(greedy)
        with adapted.mixed(mixture) as model:
            found = SETTINGS.engine(model, renderer, 64).generate(greedy)
        assert [(c.text, c.ids, c.stop) for (c,) in found] == [(c.text, c.ids, c.stop) for (c,) in expected]
        seen.append([c.text for (c,) in found])
    assert len({tuple(texts) for texts in seen}) == 3

    drawing = Request(PROMPTS, max_new_tokens=6, samples=3, temperature=0.7, seed=1, top_logprobs=2)
    with adapted.mixed([(1.0, first)]) as model:
        engine = SETTINGS.engine(model, renderer, 64)
        drawn = engine.generate(drawing)
        assert drawn == engine.generate(drawing)
    rows = [(p, c) for p, row in zip(PROMPTS, drawn, strict=True) for c in row]
    fit = [(p, c) for p, c in rows if tuple(renderer.completion_ids(c.text, not c.truncated)) == c.ids]
    assert len(fit) > len(rows) / 2
    assert len({c.text for c in chain(*drawn)}) > len(PROMPTS)
    with local.weights.mixed([(1.0, first)]) as model:
        texts = [(prompt, c.text, not c.truncated) for prompt, c in fit]
        expected = LocalEngine(model, renderer).score(texts, temperature=0.7)
    for (_, c), scores in zip(fit, expected, strict=True):
        assert c.logprobs == pytest.approx(scores, abs=1e-4)
        assert len(c.top_logprobs) == c.tokens

    with local.weights.mixed([(1.0, second)]) as model:  # as along paths, where the student lies beside
        with (
            pytest.raises(StudentError, match="max_lora_rank"),
            adapted.mixed([(1, first), (1, second), (1, first)]) as all_,
        ):
            SETTINGS.engine(all_, renderer, 64).generate(greedy)
        expected = LocalEngine(model, renderer).generate(greedy)
    with adapted.mixed([(1.0, second)]) as model:
        assert [c.ids for (c,) in SETTINGS.engine(model, renderer, 64).generate(greedy)] == [c.ids for (c,) in expected]
