"""A run taken out of its store: a PEFT adapter or a merged model, with a card that says what it is."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raygeo import __version__
from raygeo.data.readers import Prompt
from raygeo.data.validation import recorded_grading
from raygeo.errors import ConfigError, RaygeoError, StudentError
from raygeo.evaluation.harness import FOLDER, save_task, task_name
from raygeo.generation.renderer import ChatRenderer, PlainRenderer, Renderer, renderer_for
from raygeo.generation.renderer.conversation import is_conversation
from raygeo.generation.vllm import VllmSettings
from raygeo.models.adapter_config import AdapterConfig
from raygeo.models.delta import ADAPTER_FILE, open_delta
from raygeo.models.folder import ADAPTER_CONFIG
from raygeo.models.loading import load_tokenizer
from raygeo.models.merge import merge_run
from raygeo.outputs import output_folder, writing
from raygeo.pipeline.config import HELDOUT, Study, parse_study
from raygeo.pipeline.problems import benchmark_problems
from raygeo.pipeline.published import KIND, finished_run
from raygeo.pipeline.written import read_yaml
from raygeo.records import RunRecord
from raygeo.store import Store
from raygeo.tables import BASE


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, and what is missing from it, and why."""

    folder: Path
    missing: list[str]


def export_run(store: Store, name: str, out: str | Path, *, merged: bool = False) -> Exported:
    """Write the run ``name`` of a store to the new folder ``out``, with its tokenizer and a model card.

    A LoRA run becomes a PEFT adapter folder, or, ``merged``, like any other a complete model: base + delta in fp32.
    Its ``generation_config.json`` ends answers where the study's did. With it come the benchmarks that it was measured
    on, as tasks of lm-eval.

    Raises:
        ConfigError: there is no such finished run, ``out`` holds something or cannot be written, or a run that trained
            all weights is not asked for ``merged``.
        StoreError: the store lacks the run's delta or base.
    """
    out = output_folder(out)
    row = finished_run(store, name, f"run {name!r}")
    base, folder = store.folder(KIND, row["student"]), Path(store.folder("deltas", row["key"]))
    if not merged and not open_delta(folder).low_rank:
        raise ConfigError(f"run {name!r} trained all weights, so there is no adapter of it; give --merged.")
    study = _study(store)
    started = base if study is None or not _named(study) else study.student.model
    missing: list[str] = []
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if merged:
            merge_run(base, folder, out)
        else:
            config = {**AdapterConfig.read(folder).settings, "base_model_name_or_path": str(started)}
            (out / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2))
            shutil.copy(folder / ADAPTER_FILE, out / ADAPTER_FILE)
            load_tokenizer(base).save_pretrained(str(out))
        renderer = _renderer(study, base)
        _save_ends(out, out if merged else Path(base), renderer)
        tasks = {} if study is None else _save_tasks(store, study, name, out, renderer, missing)
        accuracy = [each for each in store.table("accuracy").to_pylist() if each["run"] in (name, BASE)]
        card = _card(RunRecord.of(row), str(started), accuracy, merged)
        if study is not None and tasks:
            card += "\n".join(["", *_commands(study, str(started), out, tasks, merged, renderer), ""])
        (out / "README.md").write_text(card)
    return Exported(out, missing)


def _study(store: Store) -> Study | None:
    """The study whose runs the store holds, as it was when it was last run."""
    written = store.read_bytes("study.yaml")
    try:
        return None if written is None else parse_study(read_yaml(written.decode()), "study.yaml")
    except (RaygeoError, yaml.YAMLError, UnicodeDecodeError):  # of another version, or damaged
        return None


def _named(study: Study) -> bool:
    """Whether the student has a name that others know it by."""
    return study.student.from_run is None and not study.student.model.startswith("builtin:")


def _renderer(study: Study | None, base: str) -> Renderer:
    """How the student's texts were put to it."""
    tokenizer = load_tokenizer(base)
    if study is not None:
        return renderer_for(tokenizer, study.student.chat)
    try:
        return renderer_for(tokenizer)
    except StudentError:  # such a student was read plainly
        return PlainRenderer(tokenizer)


def _save_ends(out: Path, model: Path, renderer: Renderer) -> None:
    """Write the generation settings of ``model`` into ``out``, with the tokens that the study's answers ended at."""
    file = model / "generation_config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    settings |= {"eos_token_id": list(renderer.stop_ids)}
    (out / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _dtype(study: Study) -> str:
    """What the study held the model in where it wrote answers, as lm-eval calls it."""
    engine = study.evaluation.engine
    if isinstance(engine, VllmSettings):
        return engine.dtype
    return {"fp32": "float32", "bf16": "bfloat16"}[study.student.dtype]


def _save_tasks(
    store: Store, study: Study, name: str, out: Path, renderer: Renderer, missing: list[str]
) -> dict[str, str]:
    """Write the benchmarks that the run answered; return a prompt of each that could be, and note the others."""
    answers = store.table("answers").to_pylist()
    answered: dict[str, set[str]] = {}
    for row in answers:
        if row["run"] == name:
            answered.setdefault(row["benchmark"], set()).add(row["problem_id"])
    if not answered:
        return {}
    grading = recorded_grading(store.table("counts"))
    settings = study.evaluation.answers
    until = sorted({*renderer.end_texts, str(renderer.tokenizer.decode([renderer.stop_ids[0]]))})
    saved: dict[str, str] = {}
    for benchmark, asked in answered.items():
        try:
            problems = [p for p in _problems(store, study, benchmark) if p.prompt_id in asked]
            if any(is_conversation(p.prompt) for p in problems):
                raise ConfigError("its prompts are conversations of several messages, which lm-eval cannot be given.")
            if len(problems) < len(asked):
                raise ConfigError(f"{len(asked) - len(problems)} of its problems are not where they were read.")
        except (RaygeoError, OSError) as error:
            missing.append(f"benchmark {benchmark}: {error}")
            continue
        save_task(
            out / FOLDER,
            benchmark,
            problems,
            grading,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            tokenizer=str(out.resolve()),
            until=until,
        )
        saved[benchmark] = problems[0].prompt
    return saved


def _problems(store: Store, study: Study, benchmark: str) -> list[Prompt]:
    """The problems of a benchmark, read again."""
    if benchmark == HELDOUT:
        rows = store.table("rollouts").select(["prompt_id", "prompt", "gold", "split"]).to_pylist()
        found = {r["prompt_id"]: r for r in reversed(rows) if r["split"] == "heldout" and r["gold"]}
        return [Prompt(i, r["prompt"], r["gold"], None) for i, r in reversed(found.items())]
    for settings in study.evaluation.benchmarks:
        if settings.name == benchmark:
            return benchmark_problems(study, settings)
    raise ConfigError("the study in the store no longer names it.")


def _card(record: RunRecord, base: str, accuracy: list[Mapping[str, Any]], merged: bool) -> str:
    """The model card."""
    loss, training = dict(record.loss or {}), dict(record.training or {})
    kind = loss.pop("type", "unknown")
    options = ", ".join(f"{key} {value}" for key, value in loss.items()) or "no options"
    form = "complete model (base + what was trained, fp32)" if merged else "PEFT LoRA adapter"
    front = {"base_model": base, "library_name": "transformers" if merged else "peft", "tags": ["raygeo", kind]}
    shown = {key: value for key, value in training.items() if value is not None and not isinstance(value, dict)}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {record.run}", ""]
    lines += [
        f"A {form} of `{base}`, trained on graded rollouts with the loss `{kind}` ({options}) by raygeo {__version__}.",
        "",
        f"Data and settings: key `{record.key}`, a hash of the student, the rollouts and everything below; "
        f"{record.steps} steps, {record.examples} examples, {record.tokens} tokens.",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| `{key}` | {value} |" for key, value in shown.items()),
    ]
    if isinstance(lora := training.get("lora"), dict):
        lines += [f"| `lora.{key}` | {value} |" for key, value in lora.items()]
    lines += ["", *_accuracy(record.run, accuracy)]
    return "\n".join(lines) + "\n"


def _accuracy(run: str, rows: list[Mapping[str, Any]]) -> Iterator[str]:
    """Accuracy with its interval, the base's beside it."""
    if not any(row["run"] == run for row in rows):
        yield "Its accuracy was not measured."
        return
    yield "| benchmark | problems | answers a problem | accuracy, % [95 %] | base, % [95 %] |"
    yield "| --- | --- | --- | --- | --- |"
    known = {(row["benchmark"], row["run"]): row for row in rows}
    for (benchmark, name), row in known.items():
        if name == run:
            told = [_percent(row), _percent(known[benchmark, BASE]) if (benchmark, BASE) in known else "–"]
            problems, samples = row["problems"] or row["n"], row["samples"] or 1
            yield f"| {benchmark} | {problems} | {samples} | {told[0]} | {told[1]} |"


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _commands(
    study: Study, base: str, out: Path, tasks: Mapping[str, str], merged: bool, renderer: Renderer
) -> Iterator[str]:
    """The command that measures the same with lm-eval."""
    chat = study.student.chat
    own = renderer.tokenizer.bos_token_id
    templated = isinstance(renderer, ChatRenderer)
    begins = not templated and own is not None and renderer.prompt_ids(next(iter(tasks.values())))[:1] == [own]
    model = f"pretrained={out.resolve()}" if merged else f"pretrained={base},peft={out.resolve()}"
    model += f",tokenizer={out.resolve()},dtype={_dtype(study)}" + (",add_bos_token=True" if begins else "")
    if templated and chat.template_kwargs:
        model += f",chat_template_args={chat.template_kwargs!r}"
    names = ",".join(map(task_name, tasks))
    put = " --apply_chat_template" if templated else ""
    put += f" --system_instruction {shlex.quote(chat.system)}" if templated and chat.system is not None else ""
    yield "The same problems, answered through lm-eval and graded by the same rules (`pip install lm_eval raygeo`):"
    yield ""
    yield "```sh"
    yield f"lm_eval --model hf --model_args {shlex.quote(model)} \\"
    yield f"  --include_path {shlex.quote(str(out.resolve() / FOLDER))} --tasks {names} --batch_size 1{put}"
    yield "```"
