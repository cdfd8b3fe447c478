"""Stage 2: the graded rollouts, read or sampled, checked, split and tokenised; the same table for every loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from raygeo.config import Benchmark, RolloutsSettings
from raygeo.rollouts.interventions import set_negative_share, shuffle_rewards
from raygeo.rollouts.readers import AnyReader, Prompt, read_prompts
from raygeo.rollouts.sampling import Sampling
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.rollouts.validation import Record, counts, split_heldout, validate
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.stages.student import KIND, Student, provide_model
from raygeo.store import AnyPath
from raygeo.students.builtin import problems
from raygeo.students.encoding import encode
from raygeo.students.loading import load_tokenizer

TOKENS = "tokens"


@dataclass(frozen=True)
class Rollouts:
    """The study's rollouts: unit key and table, and the tokens of its training split."""

    key: str
    table: pa.Table
    tokens_key: str
    tokens: AnyPath
    pad_id: int

    @property
    def train(self) -> pa.Table:
        """Rows that losses learn from, in the order of the tokens."""
        return self.table.filter(pc.equal(self.table["split"], "train"))

    @property
    def heldout(self) -> pa.Table:
        """Rows of the prompts kept out of training."""
        return self.table.filter(pc.equal(self.table["split"], "heldout"))


def provide_rollouts(context: Context, student: Student) -> Rollouts:
    """Read or sample the rollouts, set bad rows aside, hold prompts out, tokenise.

    Raises:
        DataError: too many rows are bad, or no row is left.
    """
    store, settings = context.store, context.study.rollouts
    tokenizer = load_tokenizer(student.folder)
    limit = settings.max_tokens or context_length(student.folder)
    records, source = _sampled(context, student) if settings.sample else _read(settings.read)
    rules = settings.model_dump(mode="json", exclude={"read", "sample", "max_tokens"})
    key = content_key("rollouts", rules, source, student.key, limit)
    if key in store.finished(("rollouts", "rejected", "counts")):
        context.count(0, 1)
    else:

        def unfit(prompt: str, completion: str) -> str | None:
            sequence = encode(tokenizer, prompt, completion)
            if len(sequence) <= limit:
                return None
            long_prompt = sequence.prompt_length >= limit
            return f"{'prompt' if long_prompt else 'prompt and completion'} longer than the context"

        valid = validate(records, grading=settings.grading, max_rejected=settings.max_rejected, unfit=unfit)
        table, done = _intervened(split_heldout(valid.rollouts, settings.heldout, settings.heldout_seed), settings)
        rows = counts(table, valid.rejected, valid.notes)
        rows += [{"stage": "rollouts", "name": name, "value": value} for name, value in done.items()]
        store.write_unit(key, {"rollouts": table, "rejected": valid.rejected, "counts": rows})
        context.count(1, 0)
    published = store.publish("rollouts", [key])
    store.publish("rejected", [key])
    store.publish("counts", [key])
    tokens_key = content_key("tokens", key, student.key)
    if not store.has_folder(TOKENS, tokens_key):
        train = published.filter(pc.equal(published["split"], "train"))
        folder = store.scratch()
        RolloutTokens.encode(tokenizer, _texts(train)).save(folder)
        store.save_folder(TOKENS, tokens_key, folder)
    tokens = store.stored(TOKENS, tokens_key)
    return Rollouts(key, published, tokens_key, tokens, int(tokenizer.pad_token_id))


def _intervened(table: pa.Table, settings: RolloutsSettings) -> tuple[pa.Table, dict[str, int]]:
    """The rollouts as the study's ablations and controls want them, and what was done to how many rows."""
    done = {}
    if settings.negative_share is not None:
        before, table = table.num_rows, set_negative_share(table, settings.negative_share, settings.negative_seed)
        done["dropped for negative_share"] = before - table.num_rows
    if settings.shuffle_rewards is not None:
        before, table = table["correct"], shuffle_rewards(table, settings.shuffle_rewards)
        done["verdicts changed by shuffle_rewards"] = pc.sum(pc.not_equal(before, table["correct"])).as_py()
    return table, done


def context_length(folder: AnyPath) -> int:
    """Longest sequence that the positions of the model in ``folder`` allow."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(str(folder)).max_position_embeddings)


def benchmark_problems(context: Context, benchmark: Benchmark) -> list[Prompt]:
    """Problems of a named benchmark."""
    found = (
        builtin_prompts(context, benchmark.problems, benchmark.seed)
        if isinstance(benchmark.problems, int)
        else read_prompts(benchmark.problems)
    )
    return found[: benchmark.limit]


def builtin_prompts(context: Context, count: int, seed: int) -> list[Prompt]:
    """Distinct built-in word problems as prompts."""
    found = problems(context.study.student.word_problems, count, seed)
    return [Prompt(f"wp{seed}-{i}", p.prompt, p.gold, p.solution) for i, p in enumerate(found)]


def _read(readers: Sequence[AnyReader]) -> tuple[Iterator[Record], str]:
    """Records of all readers, and a key of their settings and of the content of their files."""
    key = content_key([[reader.model_dump(mode="json", exclude={"path"}), reader.fingerprint()] for reader in readers])
    return chain.from_iterable(reader.rollouts() for reader in readers), key


def _sampled(context: Context, student: Student) -> tuple[Iterator[Record], str]:
    """Records sampled from the teacher, in the order of the prompts, and a key of them."""
    settings = context.study.rollouts.sample
    assert settings is not None
    if settings.teacher == "builtin" and student.teacher is not None:
        teacher_key = student.teacher
    elif settings.teacher == "student":
        teacher_key = student.key
    else:
        teacher_key = provide_model(context, settings.teacher)
    teacher = context.store.stored(KIND, teacher_key)
    if isinstance(settings.prompts, int):
        prompts = builtin_prompts(context, settings.prompts, settings.prompts_seed)
    else:
        prompts = read_prompts(settings.prompts)
    workload = Sampling(settings.decoding, teacher, teacher_key, prompts, context.study.rollouts.grading)
    result = context.run(workload)
    rows = (row for key in result.keys for row in context.store.read_unit("rollouts", key).to_pylist())
    return (Record(row["source"], line, row) for line, row in enumerate(rows, 1)), content_key(result.keys)


def _texts(table: pa.Table) -> Iterator[tuple[str, str, bool]]:
    columns = (table[name].to_pylist() for name in ("prompt", "completion", "truncated"))
    return ((prompt, completion, not truncated) for prompt, completion, truncated in zip(*columns, strict=True))
