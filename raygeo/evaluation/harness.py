"""Benchmarks of a study as tasks of lm-eval, graded by the same rules: for whoever checks a number with other tools."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raygeo.data.grading import Grading, grader
from raygeo.data.readers import Prompt

FOLDER = "lm_eval"
"""Where tasks lie in an exported model."""
_GRADING = (
    '"""Grades answers as raygeo does; needs raygeo."""\n\nfrom raygeo.evaluation.harness import process_results\n'
)


def task_name(benchmark: str) -> str:
    """What lm-eval calls a benchmark."""
    return "raygeo_" + "".join(c if c.isalnum() else "_" for c in benchmark)


def save_task(
    folder: Path,
    benchmark: str,
    problems: Sequence[Prompt],
    grading: Grading,
    *,
    max_new_tokens: int,
    temperature: float,
    tokenizer: str,
    until: Sequence[str],
) -> None:
    """Write a benchmark as a task of lm-eval into ``folder``: its problems, its settings, and how answers are graded.

    ``tokenizer`` is the folder of the tokenizer that answers are counted with: those that reach ``max_new_tokens`` were
    cut off, and are not right. ``until`` are texts of the tokens that an answer ends at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raygeo_grading.py").write_text(_GRADING)
    name = task_name(benchmark)
    judged = {"grading": grading, "max_new_tokens": max_new_tokens, "tokenizer": tokenizer}
    lines = [json.dumps({"prompt": p.prompt, "gold": p.gold, **judged}) for p in problems]
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(lines) + "\n")
    sampled: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "generation_kwargs": {"until": list(until), "max_gen_toks": max_new_tokens, **sampled},
        "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    text = yaml.safe_dump(task, sort_keys=False, allow_unicode=True)
    (folder / f"{name}.yaml").write_text(f"{text}process_results: !function raygeo_grading.process_results\n")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Grade the answer to one problem, as lm-eval calls it: ``accuracy`` 1 where it is right and was not cut off."""
    from raygeo.models.loading import load_tokenizer

    [text] = results
    cut = len(load_tokenizer(doc["tokenizer"])(text, add_special_tokens=False).input_ids) >= doc["max_new_tokens"]
    with grader(doc["grading"]) as judge:
        [verdict] = judge.grade_many([(text, doc["gold"])])
    return {"accuracy": float(verdict.correct is True and not cut)}
