"""A store with finished runs in it, made without training any."""

import torch
from study_cases import draw_rollouts, tiny_study
from tiny import save_tiny_student

from raygeo.models.delta import save_full_delta
from raygeo.models.loading import load_model
from raygeo.models.lora import LoraSettings, attach_lora
from raygeo.pipeline.config import parse_study, study_yaml
from raygeo.records import RunRecord
from raygeo.store import AnyPath, Store
from raygeo.tables import to_arrow


def store_of_runs(location: AnyPath) -> Store:
    """A finished study of a LoRA run and a full one, with answers to held-out problems and to two missing ones."""
    store = Store(location)
    store.save_folder("students", "base", save_tiny_student(store.scratch()))
    base = load_model(store.folder("students", "base"))
    adapted = attach_lora(base, LoraSettings(r=2), 0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_()
    folder = store.scratch()
    adapted.save_pretrained(folder)
    store.save_folder("deltas", "key-lora", folder)
    folder = store.scratch()
    save_full_delta(folder, {"model.norm.weight": torch.full((32,), 0.5)})
    store.save_folder("deltas", "key-full", folder)
    study = parse_study(tiny_study())
    store.write_bytes("study.yaml", study_yaml(study).encode())
    training = study.specs()[0].training.model_dump(mode="json")
    runs = [
        RunRecord(name, f"key-{name}", "finished", {"type": "sft"}, training, steps=4, examples=32, tokens=640,
                  student="base").row()
        for name in ("lora", "full")
    ] + [RunRecord("lost", "key-lost", "diverged", reason="NaN", student="base").row()]  # fmt: skip
    store.publish_rows("runs", to_arrow("runs", runs))
    rollouts = [row | {"split": "heldout"} for row in draw_rollouts(3, samples=2).to_pylist()]
    store.publish_rows("rollouts", to_arrow("rollouts", rollouts))
    counts = [{"stage": "rollouts", "name": "graded by exact: the study says so", "value": 0}]
    store.publish_rows("counts", to_arrow("counts", counts))
    answers = [
        {"run": "lora", "benchmark": benchmark, "problem_id": str(i), "correct": True, "sample": 0}
        for benchmark, problems in (("heldout", (0, 2)), ("gone", (0, 1)))
        for i in problems
    ]
    store.publish_rows("answers", to_arrow("answers", answers))
    accuracy = [
        {"run": run, "benchmark": "heldout", "n": 2, "correct": 1, "accuracy": 0.5, "low": 0.1, "high": 0.9,
         "problems": 2, "samples": 1}
        for run in ("base", "lora")
    ]  # fmt: skip
    store.publish_rows("accuracy", to_arrow("accuracy", accuracy))
    return store
