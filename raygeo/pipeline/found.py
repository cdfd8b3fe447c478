"""What each stage found, in a line, as it is said when the stage ends."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from raygeo.models.loading import context_length, read_config
from raygeo.pipeline.train import References
from raygeo.store import AnyPath, Store
from raygeo.tables import BASE


def student_found(folder: AnyPath) -> str:
    """The shape of the student in a folder."""
    config = read_config(folder)
    text, room = config.get_text_config(), context_length(config)
    return (
        f"{config.model_type}: {text.num_hidden_layers} blocks of width {text.hidden_size}, vocabulary "
        f"{text.vocab_size:,}, {'any length' if room is None else f'at most {room:,} tokens'}"
    )


def references_found(references: References) -> str:
    """What of the base and of a teacher is there for the losses."""
    named = {
        "the base's log-probabilities": references.logprobs,
        "the base's final states": references.states,
        "mismatched completions": references.mismatched_logprobs,
        "a teacher's likeliest tokens": references.teacher,
    }
    there = [name for name, folder in named.items() if folder is not None]
    there += [f"{len(references.failed)} that losses need could not be made"] if references.failed else []
    return ", ".join(there) or "no loss needs anything of the base"


def runs_found(store: Store) -> str:
    """How the runs of a store ended."""
    return f"runs: {_listed(Counter(store.table('runs')['status'].to_pylist())) or 'none'}"


def answers_found(store: Store) -> str:
    """What was answered, and how well."""
    answers = store.table("answers")
    counts = {"answers": answers.num_rows, "cut off": pc.sum(answers["truncated"]).as_py() or 0}
    counts["without an answer"] = answers["extracted"].null_count
    accuracy: dict[str, list[tuple[str, Any]]] = {}
    for row in store.table("accuracy").to_pylist():
        accuracy.setdefault(row["benchmark"], []).append((row["run"], row["accuracy"]))
    told = [f"{benchmark}: {_range(found)}" for benchmark, found in accuracy.items()]
    return "; ".join([_listed(counts), *told])


def analyses_found(asked: Mapping[str, Any], missing: Mapping[str, Any]) -> str:
    """How many analyses were made."""
    failed = sum(f"geometry.{name}" in missing for name in asked)
    return _listed({"analyses made": len(asked) - failed, "failed": failed})


def _range(accuracy: list[tuple[str, float]]) -> str:
    """The accuracies of the base and of the runs, by name, in words."""
    base = [f"base {value:.1%}" for run, value in accuracy if run == BASE]
    runs = [value for run, value in accuracy if run != BASE]
    return ", ".join([*base, *([f"runs {min(runs):.1%} to {max(runs):.1%}"] if runs else [])])


def _listed(counts: Mapping[str, int]) -> str:
    """Counts in words; those of nothing are left out but for the first two."""
    return ", ".join(f"{n:,} {name}" for place, (name, n) in enumerate(counts.items()) if n or place < 2)
