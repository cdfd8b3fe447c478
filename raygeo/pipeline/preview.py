"""What would be read of rollouts, before a study reads them: ``raygeo data``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.text import Text

from raygeo.data.merging import validate
from raygeo.data.preview import said_of
from raygeo.data.readers import AnyReader
from raygeo.data.readers.base import Reader
from raygeo.data.scanning import Limit
from raygeo.data.validation import Record, SetAside, checked, counts
from raygeo.errors import DataError
from raygeo.generation.renderer import ChatRenderer, ChatSettings, Renderer, renderer_for
from raygeo.generation.renderer.conversation import is_conversation, messages_of
from raygeo.models.loading import context_length, load_tokenizer, read_config
from raygeo.paths import without_credentials
from raygeo.pipeline.config import RolloutRules, apply_override, load_study, parse_settings
from raygeo.plain import as_json
from raygeo.report.typeset import percent
from raygeo.settings import Settings

_LINES = {".json": "jsonl", ".jsonl": "jsonl", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
_PACKED = (".gz", ".zst", ".bz2")
_FOREIGN = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z"), "an archive is not read; unpack it and give the files."),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet is not read; save it as CSV in UTF-8."),
    **dict.fromkeys((".arrow", ".feather"), "give the folder that `save_to_disk` made, or write Parquet."),
}
"""Endings of files that no reader takes, and what to do with them."""


class Asked(Settings):
    """A reader, and how its texts are put to a model."""

    reader: AnyReader
    """Where rollouts are read."""
    chat: ChatSettings = ChatSettings()
    """How they are put to the model."""


def preview(
    paths: Sequence[str], *, overrides: Sequence[str] = (), model: str | None = None, rows: int = 1000,
    json: bool = False, console: Console | None = None,
) -> None:  # fmt: skip
    """Print what would be read of ``paths``, the first ``rows`` records of each reader, or all for 0; as JSON if asked.

    Raises:
        ConfigError: an override is wrong.
        DataError: a source cannot be read, or holds nothing that can be used.
        StudentError: the model has no usable tokenizer, or no use for the chat settings.
    """
    out = console or Console(highlight=False)
    asked = _asked(paths, overrides)
    renderer = context = None
    if model is not None:
        renderer = renderer_for(load_tokenizer(model), asked[0].chat)
        context = context_length(read_config(model))
    found = []
    for each in asked:
        each.reader.check()
        reader = each.reader.resolved()
        if rows:
            reader = reader.model_copy(update={"limit": min(rows, reader.limit or rows)})
        records = list(reader.rollouts())
        counted = _count(records, renderer, context)
        sample = next(filter(_is_usable, records), None)
        if json:
            first = (
                None if sample is None else {name: value for name, value in sample.values.items() if value is not None}
            )
            found.append({"source": _place(reader), "read_as": reader.described(), "first": first, **asdict(counted)})
            continue
        _say(out, Text(f"{_place(reader)}\n  {reader.described()}"))
        if sample is not None:
            _show(out, sample, renderer)
        _say_counts(out, counted)
        allowed, bad = RolloutRules().max_set_aside, counted.counts.get("set_aside", 0)
        if bad > allowed * (bad + counted.counts["rows"]):
            said = f"A study ends where more than {percent(allowed)} of its rows are set aside (max_set_aside)."
            _say(out, Text(said, "yellow"))
        if rows and len(records) >= rows:
            _say(out, Text(f"Of the first {rows} records; --rows 0 reads all."))
    if json:
        out.print(as_json(found), markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Counts:
    """What a study would count of some records: ``lengths`` are the least, median, ninth decile and most, in ``unit``,
    by what has them; ``marks`` what the renderer found in the texts; ``set_aside`` some of the rows of no use.
    """

    counts: dict[str, int]
    pairs: int
    marks: dict[str, int]
    unit: str
    lengths: dict[str, tuple[int, int, int, int]]
    set_aside: list[dict[str, Any]]


def _is_usable(record: Record) -> bool:
    try:
        checked(record)
    except SetAside:
        return False
    return True


def unfit_for(
    renderer: Renderer, context: int | None, lengths: list[tuple[int, int]], prompt: str, completion: str
) -> str | None:
    """Why a rollout is of no use to a model with so much ``context``; if it can read it, its tokens join ``lengths``,
    those of the prompt and those of the completion.
    """
    if (why := renderer.unfit_prompt(prompt)) is not None:
        return why
    sequence = renderer.encode(prompt, completion)
    lengths.append((sequence.prompt_length, sequence.completion_length))
    if (why := renderer.unfit_completion(completion, sequence.ids[sequence.prompt_length :].tolist())) is not None:
        return why
    return f"longer than {Limit(context)}" if context is not None and len(sequence) > context else None


def _asked(paths: Sequence[str], overrides: Sequence[str]) -> list[Asked]:
    """The readers of a study file, or the reader that fits the paths."""
    if len(paths) == 1 and paths[0].endswith((".yaml", ".yml")):
        study = load_study(paths[0], overrides)
        if not study.rollouts.read:
            raise DataError(f"{paths[0]} samples its rollouts (rollouts.sample), and reads none.")
        return [Asked(reader=reader, chat=study.student.chat) for reader in study.rollouts.read]
    return [parse_settings(Asked, written(paths, overrides), "raygeo data")]


def written(paths: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings ``reader`` and ``chat`` for the paths, as a study has them, with ``overrides`` of the reader's.

    Raises:
        ConfigError: an override is wrong.
        DataError: the kind of the files is not known, or they are of several.
    """
    said: dict[str, Any] = {}
    for override in overrides:
        apply_override(said, override)
    raw = _reader(paths, said.get("type"))
    for override in overrides:
        apply_override(raw, override)
    chat = raw.pop("chat", {})
    return {"reader": raw, "chat": chat}


def _reader(paths: Sequence[str], kind: str | None) -> dict[str, Any]:
    """The settings of the reader of this kind, or of the one that the names of the paths call for."""
    if kind is None:
        kinds = {path: _kind(path) for path in paths}
        if len({*kinds.values()}) > 1:
            found = ", ".join(f"{path} ({kind})" for path, kind in kinds.items())
            raise DataError(
                f"{found}: files of different kinds; give them one after the other, or as a study's readers."
            )
        kind = kinds[paths[0]]
    if kind == "datasets":
        if len(paths) > 1:
            raise DataError(f"{', '.join(paths)}: data sets are read one at a time; give one.")
        return {"type": kind, "name": paths[0]}
    given = {"type": kind, "path": list(paths) if len(paths) > 1 else paths[0]}
    return given | {"delimiter": "\t"} if kind == "csv" and _plain(paths[0]).endswith(".tsv") else given


def _plain(path: str) -> str:
    """The path in lower case, without the ending of a compressed file."""
    plain = path.lower()
    for packed in _PACKED:
        plain = plain.removesuffix(packed)
    return plain


def _kind(path: str) -> str:
    """The reader that the name of a file or folder calls for. Raises ``DataError`` if none does."""
    suffix, place = Path(_plain(path)).suffix, Path(path).expanduser()
    if (kind := _LINES.get(suffix)) is not None:
        return kind
    if place.is_dir():
        saved = any((place / name).exists() for name in ("state.json", "dataset_dict.json"))
        return "parquet" if not saved and next(place.rglob("*.parquet"), None) is not None else "datasets"
    if "://" not in path and not place.exists():
        if path.count("/") == 1 and not place.parent.is_dir():
            return "datasets"
        raise DataError(f"there is no file or folder {path}.")
    raise DataError(
        f"{path}: "
        + _FOREIGN.get(
            suffix,
            "the kind of the file is not known by its name; say it, as in --set type=jsonl (or parquet, csv, gsm8k, "
            "solutions).",
        )
    )


def _say(out: Console, text: Text) -> None:
    out.print(text, soft_wrap=True)


def _place(reader: Reader) -> str:
    given = getattr(reader, "path", None) or getattr(reader, "name", None) or getattr(reader, "type", "")
    return without_credentials(", ".join(given) if isinstance(given, tuple) else str(given))


def _show(out: Console, record: Record, renderer: Renderer | None) -> None:
    """A rollout as text, and as tokens if there is a renderer: those that losses see on a ground of their own."""
    values = record.values
    prompt, completion = values["prompt"], values["completion"]
    _say(out, Text(f"\nThe first rollout (line {record.line}, {said_of(values)}):", "bold"))
    if isinstance(prompt, str) and is_conversation(prompt):
        for message in messages_of(prompt):
            _say(out, Text.assemble((f"{message['role']}: ", "bold"), message["content"]))
    else:
        _say(out, Text.assemble(("prompt: ", "bold"), str(prompt)))
    _say(out, Text.assemble(("completion: ", "bold"), str(completion)))
    if renderer is None or not (isinstance(prompt, str) and isinstance(completion, str)):
        return
    if (why := renderer.unfit_prompt(prompt)) is not None:
        _say(out, Text(f"\nNo tokens: {why}.", "red"))
        return
    sequence = renderer.encode(prompt, completion, ended=not values.get("truncated"))
    ids = sequence.ids.tolist()
    read = [renderer.tokenizer.decode([i]) for i in ids]
    split = sequence.prompt_length
    _say(out, Text(f"\n{split} tokens to read, and {len(ids) - split} that losses see ({renderer.identity}):", "bold"))
    _say(out, Text("|".join(read[:split]), "dim"))
    _say(out, Text("|".join(read[split:]), "reverse"))
    if isinstance(renderer, ChatRenderer) and renderer.left_out:
        said = f"The template shows answers behind {renderer.left_out!r}; completions that lack it are not given it."
        _say(out, Text(said, "yellow"))


def _count(records: Sequence[Record], renderer: Renderer | None, context: int | None) -> _Counts:
    """What a study would count of the records, and how long they are."""
    lengths: list[tuple[int, int]] = []

    def unfit(prompt: str, completion: str) -> str | None:
        if renderer is None:
            lengths.append((len(prompt), len(completion)))
            return None
        return unfit_for(renderer, context, lengths, prompt, completion)

    text = str if renderer is None else renderer.without_end
    found = validate(records, grading="auto", max_set_aside=1.0, unfit=unfit, text=text)
    rows = zip(found.rollouts["prompt"].to_pylist(), found.rollouts["completion"].to_pylist(), strict=True)
    marks = [] if renderer is None else [mark for row in rows for mark in renderer.own_marks(*row)]
    sizes = zip(("prompts", "completions"), np.array(lengths).reshape(-1, 2).T, strict=True)
    return _Counts(
        counts={row["name"]: row["value"] for row in counts(found.rollouts, found) if row["name"] != "heldout_prompts"},
        pairs=pa.compute.count_distinct(found.rollouts["pair"]).as_py(),
        marks=dict(Counter(marks)),
        unit="characters" if renderer is None else "tokens",
        lengths={name: _quantiles(of) for name, of in sizes if len(of)},
        set_aside=found.set_aside.slice(0, 3).to_pylist(),
    )


def _quantiles(sizes: np.ndarray) -> tuple[int, int, int, int]:
    low, middle, high, most = (int(np.quantile(sizes, q, method="nearest")) for q in (0, 0.5, 0.9, 1))
    return low, middle, high, most


def _say_counts(out: Console, found: _Counts) -> None:
    _say(out, Text("\nWhat a study would count:", "bold"))
    for name, value in found.counts.items():
        if value or name in ("rows", "correct", "wrong"):
            _say(out, Text(f"{value:>9}  {name.replace('_', ' ')}"))
    if found.pairs:
        _say(out, Text(f"{found.pairs:>9}  given pairs"))
    for mark, count in found.marks.items():
        _say(out, Text(f"{count:>9}  {mark}"))
    for name, (low, middle, high, most) in found.lengths.items():
        said = f"{name} have {low} to {most} {found.unit}, half of them at most {middle}, nine in ten at most {high}"
        _say(out, Text(said))
    for row in found.set_aside:
        _say(out, Text(f"set aside: {row['source']}:{row['line']} {row['reason']}: {row['text'][:80]!r}", "yellow"))
