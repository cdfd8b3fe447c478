"""The tables of every study, as Arrow schemas; an analysis declares its own beside its workloads.

Angles are in degrees, likelihoods in nats, time in seconds. What a table holds is said in its schema's metadata.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

BASE = "base"
"""The name of the untrained student in every table."""
LORA = "lora (gauge-dependent)"
"""The name in tables of the space of LoRA factors, which depends on how a delta is factored."""

_TYPES = {
    "text": pa.large_string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "flag": pa.bool_(),
    "texts": pa.large_list(pa.large_string()),
    "floats": pa.large_list(pa.float32()),
    "doubles": pa.large_list(pa.float64()),
    "ints": pa.large_list(pa.int32()),
}
_ABOUT = b"about"


def schema(about: str, columns: str) -> pa.Schema:
    """The schema of a table, with a few sentences about it.

    ``columns`` are written as in ``"run, module: text; layer: int; norm: float"``; the types are text, int (64 bits),
    float (64 bits), flag, texts, floats (lists of 32 bits), doubles (of 64) and ints (of 32). Offsets have 64 bits: a
    column may hold any number of characters or list entries.
    """
    fields = []
    for group in columns.split(";"):
        names, kind = group.split(":")
        fields += [pa.field(name.strip(), _TYPES[kind.strip()]) for name in names.split(",")]
    return pa.schema(fields, metadata={_ABOUT: " ".join(about.split()).encode()})


def about(table: pa.Schema) -> str:
    """What a schema says of its table."""
    return (table.metadata or {}).get(_ABOUT, b"").decode()


SCHEMAS: Mapping[str, pa.Schema] = {
    "rollouts": schema(
        """What is learned from. `split` is "train" or "heldout", whole prompts; `correct` is the verdict on `reward`;
        `logprobs` are those of the model that wrote the completion, one a token (end-of-text included), null if
        unknown; `pair` is common to the two rollouts of a pair that was given as one, and null for all others.
        `weight` is what the row counts, null for 1. `top_ids` and `top_logprobs` hold a teacher's likeliest tokens and
        their log-probabilities, equally many for each completion token, one token after the other, and `top_tail` the
        probability of all other tokens, one number a completion token; null if unknown.""",
        "prompt_id, prompt, gold: text; sample: int; completion: text; reward: float; correct, truncated: flag; "
        "source, split: text; logprobs: floats; pair: text; weight: float; top_ids: ints; "
        "top_logprobs, top_tail: floats",
    ),
    "usage": schema(
        """What sampling from a server took, one row a slice of the prompts: requests answered, tokens as the server
        counts them, and what they cost at the prices given. `unknown_ends` are answers that ended neither by themselves
        nor at their greatest length, which are left out.""",
        "model: text; prompts, requests, prompt_tokens, completion_tokens: int; cost: float; unknown_ends: int",
    ),
    "set_aside": schema(
        "Input rows set aside: where they came from and why.", "source: text; line: int; reason, text: text"
    ),
    "missing": schema(
        "What failed and was left out of a stage, and why; the same study, run again, makes it.",
        "stage, part, reason: text",
    ),
    "counts": schema(
        "Every count a reader should know: rows read, set aside, truncated, mixed prompts, pairs made.",
        "stage, name: text; value: int",
    ),
    "reference": schema(
        """Log-probabilities of the base, one list a rollout row, one entry a completion token (end-of-text
        included).""",
        "row: int; logprobs: floats",
    ),
    "reference_states": schema(
        """Files of final hidden states of the base: the first rollout row and completion token in each, and how
        many.""",
        "row, rows, token, tokens: int",
    ),
    "teacher_top": schema(
        """Files of a teacher's likeliest tokens: the first rollout row and completion token in each, and how many;
        `tail` is the probability that the teacher gives to all other tokens, summed over the completion tokens.""",
        "row, rows, token, tokens: int; tail: float",
    ),
    "runs": schema(
        """The runs: `loss` is the type of the loss, `params` the settings of loss and training as JSON, `delta` the
        folder of the weights' change, `student` the key of what learned.""",
        "run, loss: text; lr: float; seed, init_seed: int; status, reason: text; steps, examples, tokens: int; "
        "seconds: float; delta, params, student, mlflow_run_id, key: text",
    ),
    "trials": schema(
        """The runs of a sweep: `entry` of the study's `runs`, what was chosen (JSON, without seeds), and the metrics
        they are judged by (`measured`, JSON). `rank` is that of the configuration's means over seeds: 1 if none
        dominates it, 2 if only those of rank 1 do, and so on; those that do not keep all bounds (`keeps`) come
        last.""",
        "run: text; entry: int; values: text; seed, init_seed: int; status, measured: text; keeps: flag; rank: int",
    ),
    "objectives": schema(
        """What the runs of a sweep are judged by: objectives, each with its mode, "max" or "min", and constraints, with
        bounds instead.""",
        "metric, mode: text; at_most, at_least: float",
    ),
    "stages": schema(
        """Every training of the runs that are trained in stages or rounds: `leg` is the run that has the change of that
        stage alone, null where there is one stage; steps are counted over the whole run. `student` is the key of what
        it starts from, `rollouts` that of what was sampled for a round, null where it learns from the study's;
        `sampled` counts their rows and `sampled_right` those that are right.""",
        "run: text; stage, round: int; leg, loss: text; lr: float; seed: int; reference: text; first_step, last_step, "
        "examples, tokens: int; seconds: float; sampled, sampled_right: int; status, key, student, rollouts: text",
    ),
    "training_curves": schema(
        """Metrics while training: `objective` in the loss's own unit, `nll` the plain token mean, so that losses can be
        compared.""",
        "run: text; step: int; metric: text; value: float",
    ),
    "answers": schema(
        """Answers, one a problem where they are greedy. One that the grader could not judge is `undecided`, and not
        correct.""",
        "run, benchmark, problem_id, completion, extracted: text; correct, truncated: flag; tokens: int; "
        "undecided: flag; sample: int",
    ),
    "benchmarks": schema(
        """What was answered. `shift` says how the problems differ from those of the rollouts: `none`, not in kind;
        `ood`, harder or of another kind; `retention`, what the base could do before. `problems` are those not trained
        on.""",
        "benchmark, shift: text; problems: int",
    ),
    "accuracy": schema(
        """Over all `n` answers to `problems`, `samples` each: those cut off, without an answer, and undecided are not
        correct. Low and high are ends of a 95 % interval clustered by problem.""",
        "run, benchmark: text; n, correct: int; accuracy, low, high: float; truncated, no_answer, undecided, problems, "
        "samples: int",
    ),
    "monitor": schema(
        """Accuracy while training, at the steps whose weights were kept, the base being step 0: of `train`, problems
        that are trained on, and of benchmarks, `shift` saying how these differ from them where it is known. Low and
        high are ends of a 95 % interval.""",
        "run: text; step: int; benchmark, shift: text; n, problems: int; accuracy, low, high: float; truncated: int",
    ),
    "partings": schema(
        """When accuracy on training problems and on a benchmark `part`, the first step whose gap has a 95 % interval
        wholly above 0, and when they `meet`, the first step after which no such gap is left; null where they do not.
        `steps` counts those that were measured, the base among them.""",
        "run, benchmark: text; part, meet: int; largest_gap: float; largest_at, steps: int",
    ),
    "pass_at_k": schema(
        """Where problems were answered several times: the probability that one of `k` answers is right (unbiased, Chen
        et al., arXiv:2107.03374), with a 95 % interval clustered by problem.""",
        "run, benchmark: text; k: int; pass_at_k, low, high: float; problems, samples: int",
    ),
    "drops": schema(
        """How much lower a run's accuracy is out of distribution, on a `benchmark` of shift `ood`, than within it, on
        the benchmark `within`: `drop` is the difference, with a 95 % interval (Newcombe's hybrid score).""",
        "run, benchmark, within: text; accuracy_within, accuracy, drop, low, high: float",
    ),
    "mcnemar": schema(
        """Exact paired tests between all pairs of runs on a benchmark: McNemar's, or where problems were answered
        several times a sign-flip test of the differences of their means, by problem. `only_a` counts problems that run
        a alone solved, or solved more often; `p_holm` is corrected over all pairs.""",
        "benchmark, run_a, run_b: text; n, only_a, only_b: int; p_exact, p_holm: float",
    ),
}
"""The tables that every study has, whatever is analysed."""


def to_arrow(table: str, rows: Iterable[Mapping[str, Any]] | pa.Table, columns: pa.Schema | None = None) -> pa.Table:
    """Build the Arrow table ``table`` from row dictionaries; missing keys are null, unknown ones raise ``KeyError``.

    ``columns`` is its schema, by default that of ``SCHEMAS``. Rows that are an Arrow table must have these columns.
    """
    columns = SCHEMAS[table] if columns is None else columns
    if isinstance(rows, pa.Table):
        return rows.select(columns.names).cast(columns)
    rows = list(rows)
    unknown = {key for row in rows for key in row} - set(columns.names)
    if unknown:
        raise KeyError(f"table {table!r} has no column {sorted(unknown)}; it has {columns.names}")
    return pa.Table.from_pylist(rows, schema=columns)
