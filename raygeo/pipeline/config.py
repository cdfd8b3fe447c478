"""The study as typed models: one YAML file, refused before anything starts if a key or a value is wrong."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional, Self, TypeVar

import yaml
from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from raygeo.analyses.analysis import Need
from raygeo.analyses.between import AccuracySettings, AnswerLength
from raygeo.analyses.registry import analyses, know, own_analysis
from raygeo.cluster.settings import ActorSettings
from raygeo.data.grading import GradingChoice
from raygeo.data.readers import AnyPromptReader, AnyReader
from raygeo.data.reference import ReferenceSettings
from raygeo.data.sampling import DecodingSettings
from raygeo.data.teacher import TeacherSettings
from raygeo.errors import ConfigError
from raygeo.evaluation.answered import Answered
from raygeo.evaluation.answers import AnswerSettings
from raygeo.generation.choice import LOCAL, AnyEngine
from raygeo.generation.endpoint import EndpointSettings
from raygeo.generation.renderer import ChatSettings
from raygeo.losses.base import FROM_BASE
from raygeo.losses.selection import can_learn
from raygeo.models.attention import is_flash
from raygeo.models.loading import Loading
from raygeo.naming import HELDOUT_NLL
from raygeo.paths import local_path, without_credentials
from raygeo.pipeline.explaining import explain
from raygeo.pipeline.judged import Judged, find_judged
from raygeo.pipeline.plan import MOST_RUNS, WRITTEN, Plan, PlannedRun, RunEntries, TrainingDefaults
from raygeo.pipeline.shipped import shipped_studies
from raygeo.pipeline.written import Lines, read_yaml
from raygeo.plugins import is_own, look_in, names_own
from raygeo.search.settings import SweepSettings
from raygeo.search.space import Range, Varied, below, refusal
from raygeo.settings import AnyPlace, Name, Settings, as_plain, faults
from raygeo.toy.builtin import WordProblems
from raygeo.toy.gym.family import LevelName
from raygeo.toy.gym.student import FamilyName, GymStudent, Role
from raygeo.toy.text import TextStudent
from raygeo.training.settings import RunSpec

WORD_PROBLEMS = "builtin:word-problems"
GYM = "builtin:reasoning-gym"
TEXT = "builtin:text"
TAUGHT = (WORD_PROBLEMS, GYM)
"""Students that are made here, come with a teacher, and have problems of their own."""
MOST_PROBLEMS = 1_000_000
"""Built-in problems that may be asked for: of word problems there are fewer different ones."""
HELDOUT = "heldout"
"""The name of the study's held-out prompts as a benchmark."""
TRAIN = "train"
"""The name of the problems that are trained on, where accuracy is measured on them."""


class StudentSettings(Loading):
    """What learns, and how it is held where it is measured."""

    foreign: ClassVar[dict[str, str]] = {
        "model_name_or_path": "model",
        "name": "model",
        "path": "model",
        "torch_dtype": "dtype",
        "tokenizer": "is that of the model's folder",
        "peft_config": "is a setting of training: training.lora",
        "chat_template": "is given as chat.template",
    }

    model: AnyPlace = WORD_PROBLEMS
    """A Hugging Face folder, a hub id, ``builtin:word-problems``, ``builtin:reasoning-gym``, or ``builtin:text``, made
    from ``text_from``."""
    word_problems: WordProblems = WordProblems()
    """The built-in student of template word problems, and its teacher."""
    gym: GymStudent = GymStudent()
    """The built-in student of reasoning-gym's problems, and its teacher (install ``raygeo[gym]``)."""
    text: TextStudent = TextStudent()
    """The student made from plain text."""
    text_from: tuple[AnyPromptReader, ...] = ()
    """What the text student is made from: prompts with their solutions."""
    from_run: str | None = None
    """Start from this run of an earlier study, its delta added to what it was trained from; ``model`` is left out."""
    from_store: AnyPlace | None = None
    """The store of that study. It is not this study's own: a store names the runs of the last study in it alone."""
    chat: ChatSettings = ChatSettings()
    """How texts are put to it, to its teacher and to its runs: as they are, or in the tokenizer's chat template."""
    cpus: float = Field(2, gt=0)
    """CPUs for making a student here."""
    gpus: float = Field(0, ge=0)
    """GPUs for making a student here."""

    @model_validator(mode="after")
    def _known(self) -> "StudentSettings":
        if self.model.startswith("builtin:") and self.model not in (*TAUGHT, TEXT):
            known = f"{', '.join(TAUGHT)} and {TEXT}"
            raise refusal(("model",), self.model, f"it is not built in; the built-in students are {known}")
        if self.model == TEXT and not self.text_from:
            raise refusal(("model",), self.model, f"{TEXT} needs text_from: what it is made from")
        if (self.from_run is None) != (self.from_store is None):
            raise refusal(
                ("from_store" if self.from_run is None else "from_run",),
                self.from_store or self.from_run,
                "from_run, a run, and from_store, the store of the study that trained it, go together; give both",
            )
        if self.from_run is not None and self.model != WORD_PROBLEMS:
            said = "give either model or from_run: a run continues from the model it was trained from"
            raise refusal(("model",), self.model, said)
        return self

    @property
    def built_in(self) -> bool:
        """Whether this is a student that is made here together with its teacher."""
        return self.model in TAUGHT and self.from_run is None

    @property
    def made(self) -> WordProblems | GymStudent | TextStudent:
        """How a student that is made here is made."""
        match self.model:
            case "builtin:word-problems":
                return self.word_problems
            case "builtin:reasoning-gym":
                return self.gym
        return self.text


class SamplingSettings(Settings):
    """Rollouts drawn from a teacher."""

    teacher: AnyPlace = "builtin"
    """A local folder, a hub id, or ``builtin``: the teacher that comes with a student that is made here."""
    prompts: Annotated[int, Field(ge=1, le=MOST_PROBLEMS)] | AnyPromptReader = 768
    """How many built-in problems, or where prompts with gold answers are read."""
    prompts_seed: int = Field(1, ge=0)
    """Seed of the built-in problems."""
    decoding: DecodingSettings = DecodingSettings()
    """Samples per prompt, temperature, length, seed."""
    engine: AnyEngine = LOCAL
    """What writes: ``local``, ``vllm``, or ``endpoint``, whose model then is the teacher."""

    @model_validator(mode="after")
    def _one_teacher(self) -> "SamplingSettings":
        if self.engine.elsewhere and self.teacher != "builtin":
            raise ValueError("the teacher is the model that the engine names; leave teacher out")
        decoding = self.decoding
        if self.engine.elsewhere and decoding.top_logprobs and decoding.temperature not in (0, 1):
            said = (
                "a server's log-probabilities are those at temperature 1, so that none could be kept; set the "
                "temperature to 1 or 0, or leave top_logprobs out"
            )
            raise refusal(("decoding", "temperature"), decoding.temperature, said)
        if isinstance(self.engine, EndpointSettings) and decoding.top_logprobs and self.engine.redrawn:
            said = (
                f"engine.extra sets {', '.join(self.engine.redrawn)}, so tokens are drawn from another distribution "
                "than the one that the server's likeliest tokens are of; leave that out, or top_logprobs"
            )
            raise refusal(("decoding", "top_logprobs"), decoding.top_logprobs, said)
        return self

    @property
    def source(self) -> str:
        """Who is said to write the rollouts."""
        return "student" if self.teacher == "student" else "teacher"

    @property
    def keeps_logprobs(self) -> bool:
        """Whether rollouts come with the log-probabilities of the tokens that were drawn, where tokenizers agree."""
        drawn = self.decoding.temperature
        return drawn == 1 and self.engine.logprobs if isinstance(self.engine, EndpointSettings) else drawn > 0


class RolloutRules(Settings):
    """What becomes of the rows that were read or sampled."""

    heldout: float = Field(0.25, ge=0, lt=1)
    """Share of the prompts kept out of training for evaluation and probes."""
    heldout_seed: int = Field(0, ge=0)
    """Seed of the choice of held-out prompts."""
    max_set_aside: float = Field(0.05, ge=0, le=1)
    """Stop where more than this share of the rows cannot be used."""
    negative_share: float | None = Field(None, ge=0, le=1)
    """Drop training rows of the over-represented verdict until this share of the usable ones is wrong."""
    negative_seed: int = Field(0, ge=0)
    """Seed of the choice of rows dropped for it."""
    shuffle_rewards: int | None = Field(None, ge=0)
    """A control: with this seed, permute verdicts and rewards over the training rows."""


class RolloutsSettings(RolloutRules):
    """What is learned from: read from files, or sampled from a teacher."""

    renamed: ClassVar[dict[str, str]] = {"max_rejected": "max_set_aside"}

    read: tuple[AnyReader, ...] = ()
    """Where graded rollouts are read from."""
    sample: SamplingSettings | None = None
    """How rollouts are sampled; give either this or ``read``."""
    grading: GradingChoice = "auto"
    """``exact`` compares numbers after ``####`` or ``A:``, ``math`` compares expressions with math-verify, boxed ones
    first; ``auto`` takes ``exact`` where gold answers are numbers and completions have such markers and no boxes."""
    max_tokens: int | None = Field(None, ge=2)
    """Set rows longer than this many tokens aside; by default, those that do not fit the model's context."""

    @model_validator(mode="after")
    def _one_source(self) -> "RolloutsSettings":
        if bool(self.read) == (self.sample is not None):
            raise ValueError("give either read (files with graded rollouts) or sample (a teacher), and not both")
        return self


class ProbeSettings(Settings):
    """The fixed texts on which likelihood, curvature and representations are measured; the same for every run."""

    sequences: int = Field(128, ge=4)
    """At most this many held-out correct solutions, one a prompt."""
    curvature_sequences: int = Field(48, ge=1)
    """How many of them the Hessian is taken on."""
    answer_prefix: str = "#### "
    """What stands before the gold answer in the answer-only probe, which asks for it without any reasoning."""


Shift = Literal["none", "ood", "retention"]


class Benchmark(Settings):
    """Problems to answer beyond the held-out prompts of the study."""

    name: Name
    """The name in tables and metrics."""
    problems: Annotated[int, Field(ge=1, le=MOST_PROBLEMS)] | AnyPromptReader
    """How many fresh built-in problems, or where problems with gold answers are read: a reader, or just a file or a hub
    id whose columns are known (``ProblemsReader``)."""
    shift: Shift = "none"
    """How its problems differ from those of the rollouts: ``none``, they are of the same kind; ``ood``, harder ones or
    of another kind, whose accuracy is shown beside that within the distribution; ``retention``, what the base could do
    before and runs may forget."""
    seed: int = Field(7, ge=0)
    """Seed of the built-in problems."""
    families: Role | tuple[FamilyName, ...] = "trained"
    """Of built-in problems of reasoning-gym: ``trained``, ``heldout`` or ``retained`` families, or a list of them."""
    level: LevelName = "usual"
    """Of built-in problems of reasoning-gym: ``usual`` ones, as in the rollouts, or ``harder``."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many."""

    @field_validator("problems", mode="before", json_schema_input_type=int | AnyPromptReader | str)
    @classmethod
    def _by_name(cls, problems: Any) -> Any:
        return {"type": "problems", "path": problems} if isinstance(problems, str) else problems


class MonitorSettings(Settings):
    """Accuracy at the steps whose weights were kept (``training.snapshots``), on few problems of each kind."""

    problems: int = Field(64, ge=1)
    """At most so many training problems, held-out ones, and problems of each benchmark."""
    seed: int = Field(0, ge=0)
    """Seed of the choice of problems."""


class EvaluationSettings(Settings):
    """Accuracy of the base and of every run, greedily decoded."""

    heldout: bool = True
    """Answer the study's held-out prompts (benchmark ``heldout``)."""
    benchmarks: tuple[Benchmark, ...] = ()
    """Further benchmarks."""
    answers: AnswerSettings = AnswerSettings()
    """Decoding."""
    monitor: MonitorSettings | None = None
    """Measure accuracy on the way too, on training problems as well; by default only at the end and, for runs in
    stages or rounds, after each of these."""
    engine: AnyEngine = LOCAL
    """What writes the answers, here and along paths: ``local`` or ``vllm``. An ``endpoint`` cannot, for its model has
    the weights it has, and not those of runs."""

    @model_validator(mode="after")
    def _distinct(self) -> "EvaluationSettings":
        names = {HELDOUT} if self.heldout else set()
        for index, benchmark in enumerate(self.benchmarks):
            name, place = benchmark.name, ("benchmarks", index, "name")
            if self.monitor is not None and name == TRAIN:
                said = f"a benchmark is called {TRAIN!r}, as the monitor calls training problems; rename it"
                raise refusal(place, name, said)
            if name in names:
                reserved = f"; {HELDOUT!r} is that of the study's own held-out prompts" if name == HELDOUT else ""
                raise refusal(place, name, f"two benchmarks are called {name!r}{reserved}; give each a name of its own")
            names.add(name)
        return self


def own_asked(geometry: Any) -> tuple[str, ...]:
    """What is asked for as ``module:name`` under ``geometry``."""
    asked = geometry.items() if isinstance(geometry, Mapping) else ()
    return tuple(name for name, settings in asked if is_own(name) and settings is not None)


class AskedAnalyses(Settings):
    """The analyses; null switches one off. A key ``module:name`` asks for one of the study's own."""

    model_config = ConfigDict(extra="allow")

    renamed: ClassVar[dict[str, str]] = {"yardsticks": "cosine_baselines"}

    @model_validator(mode="before")
    @classmethod
    def _without_what_they_are_made_of(cls, given: Any) -> Any:
        """Switch off what nobody asked for by name if what it is made of is switched off."""
        if not isinstance(given, Mapping):
            return given
        given = dict(given)
        errors: list[InitErrorDetails] = []
        for name in given.keys() - cls.model_fields.keys():
            if not is_own(name):
                errors.append(InitErrorDetails(type="extra_forbidden", loc=(name,), input=given[name]))
            elif given[name] is not None:
                try:
                    given[name] = own_analysis(name).settings.model_validate(given[name])
                except ValidationError as error:
                    raise below((name,), error) from None
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        known = analyses(own_asked(given))
        for name in cls.model_fields:
            if name not in given and any(given.get(earlier, known[earlier]) is None for earlier in known[name].after):
                given[name] = None
        return given

    @property
    def own(self) -> tuple[str, ...]:
        """The analyses of the study's own that are asked for, as ``module:name``."""
        return own_asked(self.model_extra)

    def asked(self) -> dict[str, Settings]:
        """The settings of every analysis that is asked for, by name, in order."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        given |= {own_analysis(path).name: (self.model_extra or {})[path] for path in self.own}
        return {name: given[name] for name in analyses(self.own) if given.get(name) is not None}

    def with_answers_of(self, max_new_tokens: int) -> Self:
        """These analyses, with answers of this length where they say nothing of it."""
        fields = type(self).model_fields
        given = {**{name: getattr(self, name) for name in fields}, **(self.model_extra or {})}
        unsaid = {
            name: settings.model_copy(update={"max_new_tokens": max_new_tokens})
            for name, settings in given.items()
            if isinstance(settings, AnswerLength) and settings.max_new_tokens is None
        }
        return self.model_copy(update=unsaid)

    def refuse_lacking(self, lacking: Mapping[Need, str], place: tuple[str, ...] = ()) -> None:
        """Raise ``ValidationError``, naming them all, where analyses need what is lacking, or are made of what is null;
        ``lacking`` says why, and what to do, and ``place`` where, if it is for one setting.
        """
        asked, known = self.asked(), analyses(self.own)
        why: dict[str, list[str]] = {}
        for name in asked:
            for need, said in lacking.items():
                if need in known[name].needs:
                    why.setdefault(said, []).append(name)
            for earlier in known[name].after:
                if earlier not in asked:
                    said = f"is made of what geometry.{earlier} finds, which is null; ask for both, or set both to null"
                    why.setdefault(said, []).append(name)
        if why:
            raise refusal(place, self, "; ".join(f"{_each_of(names)} {said}" for said, names in why.items()))


def _each_of(names: Sequence[str]) -> str:
    """Analyses as the subject of a sentence about each."""
    *others, last = (f"geometry.{name}" for name in names)
    return f"each of {', '.join(others)} and {last}" if others else last


GeometrySettings: type[AskedAnalyses] = create_model(
    "GeometrySettings",
    __base__=AskedAnalyses,
    **{
        analysis.name: (
            Optional[analysis.settings],  # noqa: UP045
            Field(analysis.settings() if analysis.default else None, description=analysis.question),
        )
        for analysis in analyses().values()
    },  # type: ignore[call-overload]
)
"""One field an analysis, made of the registry."""


def _is_none(value: Any) -> bool:
    return value is None


class Study(Settings):
    """A whole study."""

    foreign: ClassVar[dict[str, str]] = {
        "output_dir": "store",
        "run_name": "name",
        "experiment_name": "name",
        "seeds": "is given as training.seed, a list",
        "model": "is given as student.model",
        "model_name_or_path": "is given as student.model",
        "dataset": "is given as rollouts.read",
        "dataset_name": "is given as rollouts.read",
        "loss": "is given as runs, a list of entries with a loss each",
        "losses": "is given as runs, a list of entries with a loss each",
        "lora_r": "is given as training.lora.r",
        "analyses": "geometry",
        "metrics": "geometry",
    }

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the study and of its MLflow experiment."""
    store: AnyPlace | None = None
    """Where tables, deltas and the report go: a path or a URI; by default ``store/<name>``."""
    student: StudentSettings = StudentSettings()
    """What learns."""
    rollouts: RolloutsSettings
    """What is learned from."""
    reference: ReferenceSettings = ReferenceSettings()
    """The base's log-probabilities, for the losses that need them."""
    teacher: TeacherSettings | None = Field(None, exclude_if=_is_none)
    """The model whose next-token laws the losses ``kd-*`` learn from, asked once of every rollout; by default they
    learn from what came with the rollouts (``rollouts.sample.decoding.top_logprobs``, or fields of files)."""
    training: TrainingDefaults = TrainingDefaults()
    """Defaults of every run."""
    runs: RunEntries
    """The runs: losses, with whatever differs from ``training``. A list or a range of values makes several."""
    sweep: SweepSettings | None = None
    """How values are chosen from lists and ranges, and how runs are judged; by default every listed one is trained."""
    probes: ProbeSettings = ProbeSettings()
    """What likelihood and curvature are measured on."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Accuracy."""
    geometry: GeometrySettings = GeometrySettings()
    """The analyses."""
    actors: ActorSettings = ActorSettings()
    """Resources of the actors that everything but training runs on."""
    reference_run: str | None = None
    """The run others are compared with in summaries, not one of its stages or rounds. By default, and if it does
    not finish, the first that does; of a sweep by default the best of those of the same entry, where ranks are known
    before the analyses."""
    caveats: tuple[str, ...] = ()
    """What a reader of the report must know about this study."""

    @model_validator(mode="after")
    def _answers_of_one_length(self) -> "Study":
        geometry = self.geometry.with_answers_of(self.evaluation.answers.max_new_tokens)
        return self if geometry == self.geometry else self.model_copy(update={"geometry": geometry})

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> "Study":
        places = (info.context or {}).get(WRITTEN) or range(len(self.runs))
        plan = replace(self.plan, places=places)
        if self.sweep is None or self.sweep.search == "grid":
            self._refuse_ranges(plan)
        if (count := plan.count()) > MOST_RUNS:
            said = f"its runs are {count:,} with all that varies; a study has at most {MOST_RUNS:,}"
            raise refusal(("runs",), len(self.runs), said)
        trials, points = plan.trials(), plan.points()
        self._refuse_names(plan, trials)
        compared = [spec for spec in points if spec.needs & FROM_BASE]
        for shared in ("precision", "attn_implementation"):
            for spec in compared:
                if getattr(spec.training, shared) != getattr(compared[0].training, shared):
                    said = f"runs whose loss compares with the base must share one training.{shared}"
                    raise refusal((*self._entry_of(plan, spec), shared), getattr(spec.training, shared), said)
        if any(is_flash(spec.training.attn_implementation) for spec in compared) and not self.actors.gpus:
            said = (
                "the base is asked with the attention of the runs that are compared with it, and flash attention "
                "computes on GPUs; give actors.gpus: 1 with it"
            )
            raise refusal(("actors", "gpus"), self.actors.gpus, said)
        adapters = {spec.training.lora for spec in points} | {run.adapters for run in trials}
        for lora in adapters:
            if (why := self.evaluation.engine.unfit(lora)) is not None:
                raise refusal(("evaluation", "engine"), self.evaluation.engine, why)
        ranks = [run.adapters for run in trials if run.adapters is not None]
        if self.sweep is not None and plan.open_entries():  # each may be chosen as often as there are samples
            open_to = {spec.training.lora for spec in points} - {None, *ranks}
            ranks += [lora for lora in open_to if lora is not None for _ in range(self.sweep.samples)]
        for name, settings in self.geometry.asked().items():
            if not isinstance(settings, AccuracySettings) or not settings.accuracy_problems:
                continue
            count = settings.mixed(len(ranks))
            if count > 1 and (why := self.evaluation.engine.unfit_mixture(ranks, count)) is not None:
                said = f"{why} (evaluation.engine), or accuracy_problems of geometry.{name} to 0"
                raise refusal(("evaluation", "engine"), self.evaluation.engine.type, said)
            if settings.changes_base and self.evaluation.engine.adapters_only:
                said = (
                    "these problems are put to models whose own weights were changed, and the engine "
                    f"{self.evaluation.engine.type} is given adapters only; set it to 0, or choose "
                    "evaluation.engine: {type: local}"
                )
                raise refusal(("geometry", name, "accuracy_problems"), settings.accuracy_problems, said)
        for index in plan.open_entries():
            if self.runs[index].is_chain:
                said = "a search by Optuna trains no stages and no rounds; list values (sweep.search: grid or random)"
                raise refusal(plan.place(index), self.runs[index].stem, said)
            stems = [entry.stem for entry in self.runs]
            if stems.count(stems[index]) > 1:
                said = "a search names its runs after their entry: give each entry of this loss a name"
                raise refusal((*plan.place(index), "name"), self.runs[index].name, said)
        chains = [index for index, entry in enumerate(self.runs) if entry.is_chain]
        if chains and plan.sweep.scheduler is not None:
            said = "sweep.scheduler stops runs by their NLL at a step, and stages and rounds count anew; leave it out"
            raise refusal(plan.place(chains[0]), self.runs[chains[0]].stem, said)
        if self.sweep is not None:
            self._refuse_unused_draws(self.sweep)
            find_judged(self, self.answered)
            watched = self.sweep.scheduler.metric if self.sweep.scheduler is not None else ""
            if watched == HELDOUT_NLL and self.rollouts.heldout == 0:
                said = f"{HELDOUT_NLL} is measured on held-out prompts; give rollouts.heldout"
                raise refusal(("sweep", "scheduler", "metric"), watched, said)
        if self.rollouts.heldout == 0:
            why = "is measured on held-out prompts; give rollouts.heldout, or set to null what needs them"
            self.geometry.refuse_lacking({"solutions": why}, ("rollouts", "heldout"))
        else:
            self.geometry.refuse_lacking({})
        self._refuse_no_teacher(plan)
        self._refuse_useless_samples(plan)
        self._refuse_altered_rounds(plan)
        sample = self.rollouts.sample
        if sample is not None:
            if sample.teacher == "builtin" and not self.student.built_in and not sample.engine.elsewhere:
                said = f"rollouts.sample.teacher 'builtin' goes with {' and '.join(TAUGHT)}; give a teacher model"
                raise refusal(("rollouts", "sample", "teacher"), sample.teacher, said)
            if isinstance(sample.prompts, int) and self.student.model not in TAUGHT:
                said = f"built-in prompts go with {' and '.join(TAUGHT)}; say where rollouts.sample.prompts are read"
                raise refusal(("rollouts", "sample", "prompts"), sample.prompts, said)
        for index, benchmark in enumerate(self.evaluation.benchmarks):
            if (why := self._misplaced(benchmark)) is not None:
                raise refusal(("evaluation", "benchmarks", index), benchmark, why)
        return self

    def _refuse_names(self, plan: Plan, trials: Sequence[PlannedRun]) -> None:
        """Raise where two runs have one name, or one that is not theirs, and where ``reference_run`` names none."""
        first: dict[str, PlannedRun] = {}
        for trial in trials:
            place: tuple[str | int, ...] = plan.place(trial.entry)
            if trial.name == "base":
                said = "a run cannot be named 'base', which is the untrained student"
                raise refusal((*place, "name"), trial.name, said)
            if twice := sorted(trial.names & first.keys()):
                other = first[twice[0]]
                also = "" if trial.name == twice[0] == other.name else ", once as a stage or round of another run"
                said = f"runs {twice} appear more than once{also}; give them different settings, or a name each"
                entry = self.runs[trial.entry]
                if trial.entry == other.entry:
                    place = next(entry.listed_twice(self.training, plan.place(trial.entry)), place)
                elif entry.name is not None:
                    place = (*place, "name")
                raise refusal(place, twice[0], said)
            first |= dict.fromkeys(trial.names, trial)
        names = [trial.name for trial in trials]
        if self.reference_run is None or self.reference_run in names:
            return
        if self.reference_run in first:
            said = (
                f"reference_run {self.reference_run!r} is only a part of a run; give {first[self.reference_run].name!r}"
            )
            raise refusal(("reference_run",), self.reference_run, said)
        near = get_close_matches(self.reference_run, names, 1) or names[:1]
        hint = f"did you mean {near[0]!r}?" if near else "its runs are chosen by the sweep; leave it out."
        said = f"reference_run {self.reference_run!r} is not a run of the study; {hint}"
        raise refusal(("reference_run",), self.reference_run, said)

    def _entry_of(self, plan: Plan, spec: RunSpec) -> tuple[str, int]:
        """Where the first entry is written that one of the plan's points is of."""
        indices = range(len(self.runs))
        alone = (replace(plan, entries=(self.runs[index],), places=(plan.places[index],)) for index in indices)
        return next(each.place(0) for each in alone if spec in each.points())

    def _misplaced(self, benchmark: Benchmark) -> str | None:
        """Why what a benchmark says of its problems cannot be so, or None."""
        defaults = type(benchmark).model_fields
        said = [name for name in ("families", "level") if getattr(benchmark, name) != defaults[name].default]
        if self.student.model != GYM or not isinstance(benchmark.problems, int):
            return f"{' and '.join(said)} are of the problems of {GYM}; leave them out" if said else None
        gym, sample = self.student.gym, self.rollouts.sample
        names = getattr(gym, benchmark.families) if isinstance(benchmark.families, str) else benchmark.families
        if not names:
            return f"there are no {benchmark.families or ''} families to draw from; give some in student.gym"
        if sample is None or not isinstance(sample.prompts, int):
            return None
        within = benchmark.level == "usual" and set(names) <= set(gym.trained)
        if within == (benchmark.shift == "none"):
            return None
        if within:
            return f"its problems are those of the rollouts, without a shift of {benchmark.shift!r}; leave shift out"
        return "its problems are not those of the rollouts; give shift: ood, or retention for what the base could do"

    def _refuse_no_teacher(self, plan: Plan) -> None:
        """Raise where a loss learns from a teacher and none can be asked, nor has left anything to learn from."""
        if self.teacher is not None and self.teacher.model == "builtin" and not self.student.built_in:
            said = f"teacher.model 'builtin' goes with {' and '.join(TAUGHT)}; give a teacher model"
            raise refusal(("teacher", "model"), self.teacher.model, said)
        learning = [spec for spec in plan.points() if "teacher" in spec.needs]
        if not learning or self.teacher is not None:
            return
        for run in plan.trials():
            if any(stage.rounds is not None and "teacher" in stage.spec.needs for stage in run.stages):
                said = (
                    f"run {run.name} learns in rounds from a teacher's next-token probabilities, and the rollouts of "
                    "rounds, which the run itself writes, come with none; give a model that is asked for them, as in "
                    "teacher: {model: FOLDER}"
                )
                raise refusal(plan.place(run.entry), run.name, said)
        sample = self.rollouts.sample
        if sample is not None:
            known, instead = sample.decoding.top_logprobs > 0, "set rollouts.sample.decoding.top_logprobs"
        else:
            fields = [getattr(reader, "fields", None) for reader in self.rollouts.read]
            known, instead = (
                any(each is None or each.top_ids for each in fields),
                "say which fields are top_ids and top_logprobs",
            )
        if not known:
            said = (
                f"run {learning[0].name} learns from a teacher's next-token probabilities, and there are none; give a "
                f"model that is asked for them, as in teacher: {{model: FOLDER}}, or {instead}"
            )
            raise refusal(self._entry_of(plan, learning[0]), learning[0].name, said)

    def _refuse_useless_samples(self, plan: Plan) -> None:
        """Raise where rollouts are sampled of which a loss can learn nothing, whatever verdicts they get."""
        sample = self.rollouts.sample
        decoding = DecodingSettings() if sample is None else sample.decoding
        stages = [(plan.place(run.entry), stage) for run in plan.trials() for stage in run.stages]
        for place, stage in stages:
            if stage.rounds is not None:
                drawn, source, above = stage.sampling.decoding(decoding, 1), "student", f"runs.{place[1]}.sampling"
                keeps = drawn.temperature > 0
            elif sample is not None:
                drawn, source, above = decoding, sample.source, "rollouts.sample.decoding"
                keeps = sample.keeps_logprobs
            else:
                continue
            loss = stage.spec.loss
            if "behaviour" in loss.needs and not keeps:
                said = (
                    "the loss learns from the log-probabilities that completions were drawn with, and greedy decoding "
                    f"has none, a server's are those at temperature 1; set {above}.temperature to 1, for a server "
                    "engine.logprobs to true, or choose another loss"
                )
                raise refusal(place, stage.label, said)
            if type(loss).__module__.startswith("raygeo.") and not can_learn(loss, drawn.samples, source):
                other = "have the student write them (rollouts.sample.teacher: student)"
                instead = f"set {above}.samples to 2 or more" if drawn.samples == 1 else other
                said = (
                    f"the loss learns nothing from completions whose source is {source!r}, {drawn.samples} a prompt, "
                    f"whatever their verdicts; {instead}, or choose another loss"
                )
                raise refusal(place, stage.label, said)

    def _refuse_altered_rounds(self, plan: Plan) -> None:
        """Raise where what is done to the study's rollouts would not be done to those of rounds."""
        altered = [name for name in ("negative_share", "shuffle_rewards") if getattr(self.rollouts, name) is not None]
        for index, entry in enumerate(self.runs if altered else ()):
            if any(part.rounds is not None for part in entry.parts):
                said = (
                    f"rounds learn from rollouts that the run writes, to which rollouts.{altered[0]} is not applied; "
                    "leave one of the two out, or make it a study of its own"
                )
                raise refusal(plan.place(index), entry.stem, said)

    def _refuse_ranges(self, plan: Plan) -> None:
        """Raise where a range stands though every value is to be listed."""
        parts: list[tuple[tuple[int | str, ...], Varied]] = [(("training",), self.training)]
        parts += [(plan.place(index), entry) for index, entry in enumerate(self.runs)]
        for above, part in parts:
            for place, domain in part.domains.items():
                if isinstance(domain, Range):
                    said = "a grid takes lists; to draw from a range, set sweep.search to random or optuna"
                    raise refusal((*above, *place), domain.plain(), said)

    def _refuse_unused_draws(self, sweep: SweepSettings) -> None:
        """Raise where it is said how many values are to be drawn, or how, and every listed one is trained."""
        for name in ("samples", "seed") if sweep.search == "grid" else ():
            if (given := getattr(sweep, name)) != type(sweep).model_fields[name].default:
                said = (
                    "a grid trains every combination of the listed values and draws none; set sweep.search to random "
                    "or optuna, or leave it out. To train each several times, give training.seed as a list"
                )
                raise refusal(("sweep", name), given, said)

    @property
    def location(self) -> str:
        """Where its store is."""
        return self.store or f"store/{self.name}"

    @property
    def plan(self) -> Plan:
        """The runs, known and to be found."""
        return Plan(self.runs, self.training, self.sweep or SweepSettings())

    @property
    def answered(self) -> Answered:
        """The benchmarks that are answered, the held-out prompts first, and how often."""
        heldout = self.evaluation.heldout and self.rollouts.heldout > 0
        shifts = {HELDOUT: "none"} if heldout else {}
        shifts |= {benchmark.name: benchmark.shift for benchmark in self.evaluation.benchmarks}
        return Answered(shifts, self.evaluation.answers.samples)

    @property
    def judged(self) -> Judged:
        """What the runs of its sweep are judged by."""
        return find_judged(self, self.answered)

    def specs(self) -> list[RunSpec]:
        """Every run known before training starts, resolved, in the order of the file; of one in stages, the last."""
        return [trial.spec for trial in self.plan.trials()]


S = TypeVar("S", bound=Settings)
Overrides = str | Sequence[str] | Mapping[str, Any]
"""Settings that go before others: texts ``a.b=c``, or one, whose values are YAML, or values by places ``a.b``;
``a.0.b`` indexes a list."""
_MOST_BYTES, _MOST_LINES = 1 << 20, 20
_INDEX = re.compile(r"\[(\d*)\]")
_NAMES = re.compile(r"[a-z][a-z0-9_.]*[a-z0-9]")
"""What may be the name of a setting in a sentence."""

# -- reading ------------------------------------------------------------------------------------------------------


def load_study(
    given: "str | PathLike[str] | Mapping[str, Any] | Study",
    overrides: Overrides = (),
    store: "str | PathLike[str] | None" = None,
) -> Study:
    """Read a study file, or the shipped study of that name, apply overrides, and validate it.

    In place of a file plain data or a study may be given. Relative paths of data files in the study are left as they
    are: relative to the working directory.

    Raises:
        ConfigError: naming every wrong key or value with its line, what was read, and what is allowed.
    """
    if isinstance(given, Study):
        written = Written("study", given.model_dump(mode="json"))
    elif isinstance(given, Mapping):
        written = Written("study", as_plain(given))
    elif not isinstance(given, str | PathLike):
        kinds = "a file, the name of a shipped study, a mapping of settings or a Study"
        raise ConfigError(f"a study is given as {kinds}, not as {type(given).__name__}.")
    else:
        written = read_written(given, "study")
        if written.raw.keys() & {"base", "models"} and not written.raw.keys() & {"rollouts", "runs"}:
            raise ConfigError(f"{str(given)!r} holds a comparison; run it by raygeo compare {given}.")
    written.override(overrides, {"store": store})
    find_own(written.raw, *([] if isinstance(given, Study | Mapping) else [given]))
    return parse_written(Study, written)


def find_own(raw: Mapping[str, Any], *files: "str | PathLike[str]") -> None:
    """Let what settings name as ``module:name`` be found in the working directory, and beside the files they are in."""
    if names_own(raw):
        for folder in (Path(), *(Path(file).parent for file in files)):
            look_in(folder)


@dataclass(frozen=True)
class Written:
    """Settings as plain data with their ``origin`` for errors: a name, of a file the ``lines`` too, and what of them
    was ``changed`` by something else, by place.
    """

    origin: str
    raw: dict[str, Any]
    lines: Lines | None = None
    changed: dict[tuple[str, ...], str] = field(default_factory=dict)

    def override(self, overrides: Overrides, options: Mapping[str, Any]) -> None:
        """Change settings by overrides, and by options of the same name that are given.

        Raises:
            ConfigError: there is nothing to set, or what is given is no override.
        """
        for place, value, said in _assignments(overrides):
            _set(self.raw, place, value, said)
            self.changed[tuple(place.split("."))] = said
        for name, value in options.items():
            if value is not None:
                self.raw[name] = as_plain(value)
                self.changed[name,] = f"--{name}"

    def where(self, location: Sequence[int | str], said: str) -> str:
        """What to look at for a problem with the settings at ``location``, as the beginning of a sentence.

        Where it is said of several settings at once, it is the first of them that is written there.
        """
        places = [*((*location, *name.split(".")) for name in _NAMES.findall(said)), tuple(location)]
        for place in places:
            parts = tuple(map(str, place))
            if changed := [each for each in self.changed if parts[: len(each)] == each]:
                return f"{self.changed[max(changed, key=len)]}: "
        if self.lines is None:
            return ""
        written = next(filter(self.lines.has, places), location)
        return f"{self.origin}:{self.lines.of(written)}: " if written else ""


def read_written(path: "str | PathLike[str]", kind: str) -> Written:
    """What a file of settings holds, or the shipped one of that name; ``kind`` says in errors what it is of.

    Raises:
        ConfigError: it cannot be read, or holds no settings.
    """
    named = f"the {kind} file {str(path)!r}"
    try:
        text = _text_of(path)
        raw = read_yaml(text)
    except OSError as error:
        near = get_close_matches(str(path), shipped_studies(), 1)
        hint = f"; did you mean the shipped study {near[0]!r}?" if near else "."
        raise ConfigError(f"{named} cannot be read: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named} is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{named} is not YAML: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{named} cannot be read: {error}.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{named} holds {type(raw).__name__}, not a mapping of settings.")
    return Written(str(path), raw, Lines(text))


def _text_of(path: "str | PathLike[str]") -> str:
    """What a file holds, or the shipped one of that name."""
    if not local_path(path).is_file() and (shipped := shipped_studies().get(str(path))) is not None:
        return shipped.text
    with local_path(path).open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes, so it is none")
    return content.decode()


def parse_study(raw: dict[str, Any], origin: str = "study") -> Study:
    """Validate a study given as plain data; ``origin`` names it in errors (``ConfigError``)."""
    return parse_settings(Study, raw, origin)


def parse_settings(model: type[S], raw: dict[str, Any], origin: str) -> S:
    """Validate plain data as ``model``; ``origin`` names it in errors (``ConfigError``)."""
    return parse_written(model, Written(origin, raw))


def parse_written(model: type[S], written: Written) -> S:
    """Validate settings as ``model`` (``ConfigError``)."""
    if odd := list(islice(faults(written.raw), _MOST_LINES + 1)):
        raise ConfigError(_listed(written.origin, [f"{written.where(place, '')}{said}" for place, said in odd]))
    know(own_asked(written.raw.get("geometry")))
    try:
        return model.model_validate(written.raw, context={})
    except ValidationError as error:
        wrong = explain(error, model, written.raw)
        said = [f"{written.where(place, sentence)}{sentence}" for place, sentence in wrong]
        raise ConfigError(_listed(written.origin, said)) from None


def _listed(origin: str, said: list[str]) -> str:
    more = [f"and {len(said) - _MOST_LINES} more"] if len(said) > _MOST_LINES else []
    return "\n- ".join([f"{origin}:", *said[:_MOST_LINES], *more])


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Change plain settings by ``a.b=c``; raises ``ConfigError`` where there is nothing to set."""
    _set(raw, *_assignment(override))


def _assignments(overrides: Overrides) -> Iterator[tuple[str, Any, str]]:
    """The place of each setting that is overridden, its value, and how errors name the override."""
    if isinstance(overrides, Mapping):
        for place, value in overrides.items():
            yield str(place), as_plain(value), f"override {str(place)!r}"
    elif isinstance(overrides, str):
        yield _assignment(overrides)
    elif isinstance(overrides, Sequence) and all(isinstance(override, str) for override in overrides):
        yield from map(_assignment, overrides)
    else:
        raise ConfigError(f"overrides are texts as 'a.b=c', or a mapping of places 'a.b' to values, not {overrides!r}.")


def _assignment(override: str) -> tuple[str, Any, str]:
    place, equals, text = override.partition("=")
    said = f"--set {override}"
    if not equals or not place:
        raise ConfigError(f"{said} is not of the form a.b=c.")
    if "[" in place:
        dotted = _INDEX.sub(r".\1", place)
        raise ConfigError(f"{said}: entries of lists are written with dots, {dotted}.")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{said}: the value is not YAML: {error}") from error
    return place, _number(value) if isinstance(value, str) else value, said


def _set(raw: dict[str, Any], path: str, value: Any, said: str) -> None:
    """Set what is at ``a.b`` in plain settings; ``said`` names in errors what asks for it."""
    *parents, last = path.split(".")
    node: Any = raw
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
            if node is None:
                raise TypeError
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (TypeError, ValueError, IndexError, AttributeError):
        raise ConfigError(f"{said}: there is nothing to set at {path!r} in the study.") from None


def _number(text: str) -> Any:
    """YAML 1.1 reads 5e-4 as text; a number is meant."""
    try:
        return float(text)
    except ValueError:
        return text


def study_yaml(study: Settings) -> str:
    """The whole study, or comparison, with every default, as YAML; its URIs have lost user and password."""
    return without_credentials(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
