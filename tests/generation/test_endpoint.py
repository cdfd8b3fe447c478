"""The engine that asks a server, against a small one of the tests' own that speaks the protocol and misbehaves."""

import itertools
import json
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from study_cases import draw_rollouts
from tiny import TINY

from raygeo.cluster.execution import run_workload, until_failure
from raygeo.data.readers import Prompt
from raygeo.data.sampling import DecodingSettings, SamplingElsewhere
from raygeo.errors import ConfigError, EndpointError, StudentError, WorkloadError
from raygeo.generation.endpoint import EndpointEngine, EndpointSettings
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import PlainRenderer
from raygeo.generation.vllm import VllmSettings
from raygeo.models.lora import LoraSettings
from raygeo.models.run import Run
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.journal import AnswerJournal
from raygeo.toy.architecture import build_model
from raygeo.toy.word_problems import word_tokenizer

QUICK = {"model": "tiny", "backoff": 0.01, "deadline": 120, "timeout": 120}
PROMPTS = [row["prompt"] for row in draw_rollouts(5, samples=1).to_pylist()]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(TINY.model_copy(update={"init_std": 0.3}), tokenizer, seed=3).eval()


@contextmanager
def serving(model, tokenizer, fault=lambda number, body: None, most=1):
    """A server of ``model`` on loopback, a front of ``LocalEngine`` that gives at most ``most`` choices.

    ``fault`` sees the number and the body of each request; it returns a status and headers to refuse with, or None, or
    the body of an answer.
    """
    engine, lock, seen = LocalEngine(model, PlainRenderer(tokenizer)), threading.Lock(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply(200, {"object": "list", "data": [{"id": "tiny"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append(SimpleNamespace(body=body, key=self.headers.get("Authorization"), path=self.path))
                number = len(seen) - 1
            refusal = fault(number, body)
            if isinstance(refusal, dict):
                self.reply(200, refusal)
                return
            if refusal == "close":
                self.close_connection = True
                return
            if refusal is not None:
                said = f"not now, {self.headers.get('Authorization')}"
                self.reply(refusal[0], {"error": {"message": said}}, refusal[1])
                return
            prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
            with lock:
                [written] = engine.generate(
                    Request(
                        [prompt], body["max_tokens"], min(most, body.get("n", 1)), body["temperature"], body["seed"]
                    )
                )
            choices = [self.choice(body, each) for each in written]
            usage = {"prompt_tokens": 7, "completion_tokens": sum(each.tokens for each in written)}
            self.reply(200, {"choices": choices, "usage": usage})

        def choice(self, body, each):
            said = {"finish_reason": "length" if each.truncated else "stop"}
            by_id = body.get("return_tokens_as_token_ids")
            tokens = [f"token_id:{i}" if by_id else tokenizer.decode([i]) for i in each.ids]
            if "prompt" in body:
                given = {"tokens": tokens, "token_logprobs": each.logprobs, "top_logprobs": None}
                return said | {"text": each.text, "logprobs": given if "logprobs" in body else None}
            given = [
                {"token": token, "logprob": score, "top_logprobs": [{"token": token, "logprob": score}]}
                for token, score in zip(tokens, each.logprobs or (), strict=each.logprobs is not None)
            ]
            content = {"content": given} if body.get("logprobs") else None
            return said | {"message": {"content": each.text}, "logprobs": content}

        def reply(self, status, body, headers=()):
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_):
            """Whoever gave up waiting has closed the connection."""

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/v1", seen=seen)
    finally:
        server.shutdown()
        server.server_close()


def engine(server, tokenizer, **settings):
    return EndpointEngine(EndpointSettings(base_url=server.url, **QUICK | settings), PlainRenderer(tokenizer))


def texts(completions):
    return [[(each.text, each.truncated) for each in row] for row in completions]


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_greedy_texts_are_those_of_the_local_engine_whatever_fails(model, tokenizer, api):
    faults = {0: (429, {"Retry-After": "0"}), 1: (500, {}), 2: "close", 4: (503, {"Retry-After": "soon"})}
    request = Request(PROMPTS, max_new_tokens=8)
    with serving(model, tokenizer, lambda number, body: faults.get(number)) as server:
        asked = engine(server, tokenizer, api=api, concurrency=3)
        found = asked.generate(request)
    assert texts(found) == texts(LocalEngine(model, PlainRenderer(tokenizer)).generate(request))
    assert len(server.seen) == len(PROMPTS) + len(faults)
    assert vars(asked.usage) == {
        "requests": 5,
        "prompt_tokens": 35,
        "completion_tokens": sum(each.tokens for row in found for each in row),
        "unknown_ends": 0,
    }


def test_an_answer_that_never_comes_is_given_up_and_asked_again(model, tokenizer):
    released = threading.Event()

    def late(number, body):
        if number == 0:
            released.wait(60)

    with serving(model, tokenizer, late) as server:
        found = engine(server, tokenizer, timeout=0.3).generate(Request(PROMPTS[:1], max_new_tokens=4))
        released.set()
    assert len(server.seen) >= 2
    assert texts(found) == texts(LocalEngine(model, PlainRenderer(tokenizer)).generate(Request(PROMPTS[:1], 4)))


def test_a_server_that_gives_one_sample_is_asked_for_the_rest_with_other_seeds(model, tokenizer):
    request = Request(PROMPTS[:2], max_new_tokens=8, samples=3, temperature=1.0, seed=5)
    with serving(model, tokenizer, most=2) as server:
        found = engine(server, tokenizer).generate(request)
        again = engine(server, tokenizer, concurrency=1).generate(request)
    assert [len(row) for row in found] == [3, 3]
    assert texts(found) == texts(again)
    sent = [seen.body for seen in server.seen[:4]]
    assert Counter(body.get("n") for body in sent) == {3: 2, None: 2}
    assert len({body["seed"] for body in sent}) == 4


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_logprobs_are_the_local_ones_where_tokens_are_the_students(model, tokenizer, api):
    renderer = PlainRenderer(tokenizer)
    request = Request(PROMPTS, max_new_tokens=6, samples=4, temperature=1.0)
    with serving(model, tokenizer) as server:
        found = engine(server, tokenizer, api=api, logprobs=True).generate(request)
    known = [(p, each) for p, row in zip(PROMPTS, found, strict=True) for each in row if each.logprobs is not None]
    assert known
    written = [(prompt, each.text, not each.truncated) for prompt, each in known]
    for (_, each), expected in zip(known, LocalEngine(model, renderer).score(written, temperature=1.0), strict=True):
        assert each.logprobs == pytest.approx(expected, abs=1e-5)
        assert each.ids == tuple(renderer.completion_ids(each.text, not each.truncated))


@pytest.mark.parametrize("extra", [{}, {"return_tokens_as_token_ids": True}])
def test_likeliest_tokens_are_given_by_the_students_ids_where_they_are_asked_for(model, tokenizer, extra):
    renderer = PlainRenderer(tokenizer)
    request = Request(PROMPTS, max_new_tokens=4, samples=4, temperature=1.0, top_logprobs=1)
    with serving(model, tokenizer) as server:
        found = engine(server, tokenizer, extra=extra, logprobs=True).generate(request)
    known = [each for row in found for each in row if each.top_logprobs is not None]
    assert known
    for each in known:
        ids = renderer.completion_ids(each.text, not each.truncated)
        assert [list(step) for step in each.top_logprobs] == [[i] for i in ids]
        assert [*itertools.chain(*(step.values() for step in each.top_logprobs))] == pytest.approx(each.logprobs)
    assert server.seen[0].body["top_logprobs"] == 1


def test_likeliest_tokens_whose_text_is_that_of_several_are_not_known(model, tokenizer, monkeypatch):
    request = Request(PROMPTS[:1], max_new_tokens=4, samples=4, temperature=1.0, top_logprobs=1)
    with serving(model, tokenizer) as server:
        own = engine(server, tokenizer)
        monkeypatch.setattr(own, "_ids", {tokenizer.decode([i]): None for i in range(len(tokenizer))})
        [found] = own.generate(request)
    assert {each.top_logprobs for each in found} == {None}


def test_a_conversation_is_sent_as_its_messages(model, tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    messages.append({"role": "user", "content": PROMPTS[0]})
    request = Request([json.dumps(messages, separators=(",", ":"))], max_new_tokens=4)
    with serving(model, tokenizer) as server:
        engine(server, tokenizer).generate(request)
        with pytest.raises(EndpointError, match="set the engine's api to chat"):
            engine(server, tokenizer, api="completions").generate(request)
    assert [seen.body["messages"] for seen in server.seen] == [messages]


def test_what_was_answered_before_a_failure_is_never_asked_again(model, tokenizer, store):
    journal = AnswerJournal(store, "answers")
    request = Request(PROMPTS, max_new_tokens=6, journal=journal)
    refused = lambda number, body: (400, {}) if body["prompt"] == PROMPTS[3] else None  # noqa: E731
    with serving(model, tokenizer, refused) as server, pytest.raises(EndpointError, match=r"prompt .*400.*not now"):
        engine(server, tokenizer, api="completions", concurrency=1).generate(request)
    with serving(model, tokenizer) as server:
        asked = engine(server, tokenizer, api="completions", concurrency=1)
        found = asked.generate(request)
    assert [seen.body["prompt"] for seen in server.seen] == PROMPTS[3:]
    assert texts(found) == texts(LocalEngine(model, PlainRenderer(tokenizer)).generate(request))
    assert asked.usage.requests == 5


def choice(text="an answer", why="stop", **more):
    return {"message": {"content": text}, "finish_reason": why} | more


def test_samples_of_an_unfinished_prompt_are_not_asked_for_again(model, tokenizer, store):
    request = Request(PROMPTS[:1], 6, samples=4, temperature=1.0, seed=5, journal=AnswerJournal(store, "answers"))
    with serving(model, tokenizer) as server:
        whole = engine(server, tokenizer).generate(replace(request, journal=None))
    broken = lambda number, body: (400, {}) if number == 2 else None  # noqa: E731
    with serving(model, tokenizer, broken) as server, pytest.raises(EndpointError, match="400"):
        engine(server, tokenizer).generate(request)
    with serving(model, tokenizer) as server:
        asked = engine(server, tokenizer)
        assert texts(asked.generate(request)) == texts(whole)
    assert [seen.body.get("n") for seen in server.seen] == [2, None]
    assert asked.usage.requests == 4


@pytest.mark.parametrize(
    ("error", "again"),
    [
        ({"error": {"code": 429, "message": "slow down"}}, True),
        ({"error": {"code": "rate_limit_exceeded"}}, True),
        ({"choices": [choice("", "error", error={"code": 502})]}, True),
        ({"object": "error", "code": 400, "message": "too long"}, False),
        ({"error": "no such model"}, False),
    ],
)
def test_an_error_in_an_answer_counts_as_what_it_says(model, tokenizer, error, again):
    with serving(model, tokenizer, lambda number, body: None if number else error) as server:
        asked = engine(server, tokenizer)
        if again:
            assert len(asked.generate(Request(PROMPTS[:1], 4))) == 1
        else:
            with pytest.raises(EndpointError, match="refuses the request"):
                asked.generate(Request(PROMPTS[:1], 4))
    assert len(server.seen) == 1 + again


def test_ends_are_told_from_cuts_and_what_is_neither_is_counted_and_left_out(model, tokenizer):
    reasons = ("stop", "eos_token", "stop_sequence", "tool_calls", "length", "max_tokens", "content_filter", None)
    answer = {"choices": [choice(f"#### {i}", why) for i, why in enumerate(reasons)]}
    decoding = DecodingSettings(samples=len(reasons), max_new_tokens=6)
    with serving(model, tokenizer, lambda number, body: answer) as server:
        asked = engine(server, tokenizer)
        [found] = asked.generate(Request(PROMPTS[:1], 6, samples=len(reasons), temperature=1.0))
        settings = EndpointSettings(base_url=server.url, **QUICK)
        prompts = [Prompt("0", PROMPTS[0], "3", None)]
        work = SamplingElsewhere(decoding, PlainRenderer(tokenizer), prompts, "exact", settings)
        made = work.compute(None, work.tasks()[0].payload)
    assert [each.stop for each in found] == ["end"] * 4 + ["length"] * 2 + ["unknown"] * 2
    assert asked.usage.unknown_ends == made["usage"][0]["unknown_ends"] == 2
    assert [row["sample"] for row in made["rollouts"]] == list(range(6))
    assert [row["truncated"] for row in made["rollouts"]] == [False] * 4 + [True] * 2


def test_a_thought_whose_opening_the_server_wrote_is_opened(model, tokenizer):
    spoken = ("6 x 7\n</think>\n\n42", "<think>\n6\n</think>\n\n42", "42")
    answers = [{"choices": [choice(text)], "usage": {"completion_tokens": 9}} for text in spoken]
    with serving(model, tokenizer, lambda number, body: answers[number]) as server:
        [found] = engine(server, tokenizer).generate(Request(PROMPTS[:1], 60, samples=3, temperature=1.0))
    assert [each.text for each in found] == [f"<think>\n{spoken[0]}", *spoken[1:]]


def test_fields_of_raygeos_own_and_other_distributions_with_logprobs_are_refused():
    given = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    with pytest.raises(ValidationError, match="n, temperature: set by raygeo itself"):
        EndpointSettings(**given, extra={"temperature": 0.5, "n": 2})
    with pytest.raises(ValidationError, match=r"extra sets min_p, top_p, .*logprobs to false"):
        EndpointSettings(**given, logprobs=True, extra={"top_p": 0.9, "min_p": 0.1, "top_k": -1})
    assert EndpointSettings(**given, logprobs=True, extra={"top_p": 1.0, "top_k": 0}).extra["top_p"] == 1
    assert EndpointSettings(**given, extra={"top_p": 0.9}).extra == {"top_p": 0.9}


def test_a_server_that_stays_busy_ends_the_work_at_the_deadline(model, tokenizer):
    always, late = lambda number, body: (429, {}), lambda number, body: (429, {"Retry-After": "3600"})
    said = pytest.raises(EndpointError, match=r"within 2 s, asked \d+ times .*429")
    with serving(model, tokenizer, always) as server, said:
        engine(server, tokenizer, deadline=2).generate(Request(PROMPTS, max_new_tokens=4))
    with serving(model, tokenizer, late) as server, pytest.raises(EndpointError, match="asked 1 times"):
        engine(server, tokenizer).generate(Request(PROMPTS[:1], max_new_tokens=4))


def test_keys_come_from_the_environment_and_go_nowhere_else(model, tokenizer, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "very-secret")
    with serving(model, tokenizer, lambda number, body: (401, {})) as server:
        asked = engine(server, tokenizer, api_key_env="TINY_KEY")
        with pytest.raises(EndpointError) as refused:
            asked.generate(Request(PROMPTS[:1], max_new_tokens=4))
    assert server.seen[0].key == "Bearer very-secret"
    assert "very-secret" not in f"{refused.value}{asked.settings.model_dump_json()}{asked.settings.identity}"
    monkeypatch.delenv("TINY_KEY")
    with pytest.raises(EndpointError, match=r"TINY_KEY .* is not set"):
        asked.settings.students()
    with pytest.raises(ValidationError, match="no key or password"):
        EndpointSettings(base_url="http://me:secret@127.0.0.1/v1", model="tiny")


def test_what_a_server_has_not_is_known_before_work_starts(model, tokenizer, tmp_path):
    with serving(model, tokenizer) as server:
        settings = EndpointSettings(base_url=server.url, **QUICK)
        with pytest.raises(EndpointError, match="no model 'other'; it has tiny"):
            settings.model_copy(update={"model": "other"}).students()
        with pytest.raises(StudentError, match="weights of runs"):
            settings.students(runs=[Run("sft", "k", str(tmp_path))])
        with pytest.raises(StudentError, match="weights of runs"):
            settings.students().mixed([(1.0, {})])
    with pytest.raises(EndpointError, match="is the server running"):
        settings.students()


def test_sampling_resumes_counts_and_costs(model, tokenizer, store):
    prompts = [Prompt(str(i), text, "3", None) for i, text in enumerate(PROMPTS)]
    decoding = DecodingSettings(samples=2, max_new_tokens=6, prompts_per_task=3)
    broken = lambda number, body: (404, {}) if number == 4 else None  # noqa: E731

    def workload(server):
        settings = EndpointSettings(base_url=server.url, concurrency=1, price={"prompt": 1, "completion": 2}, **QUICK)
        journal = AnswerJournal(store, "answers")
        return SamplingElsewhere(decoding, PlainRenderer(tokenizer), prompts, "exact", settings, journal)

    with (
        serving(model, tokenizer, broken, most=2) as server,
        pytest.raises(WorkloadError, match=r"prompts 3 to 5.*404"),
    ):
        run_workload(workload(server), store, until_failure)
    with serving(model, tokenizer, most=2) as server:
        keys = run_workload(workload(server), store, until_failure).keys
    assert [seen.body["messages"][0]["content"] for seen in server.seen] == PROMPTS[4:]
    rows = store.publish("rollouts", keys).to_pylist()
    assert [(row["prompt"], row["sample"]) for row in rows] == [(text, i) for text in PROMPTS for i in range(2)]
    used = store.publish("usage", keys).to_pylist()
    assert [(row["prompts"], row["requests"], row["prompt_tokens"]) for row in used] == [(3, 3, 21), (2, 2, 14)]
    for row in used:
        assert row["cost"] == pytest.approx((row["prompt_tokens"] + 2 * row["completion_tokens"]) / 1e6)


def test_a_study_takes_an_endpoint_for_its_teacher_and_refuses_it_for_its_runs():
    served = {"type": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "big"}
    sample = {"prompts": {"type": "jsonl", "path": "p.jsonl"}, "engine": served}
    study = {
        "name": "s",
        "student": {"model": "m"},
        "rollouts": {"sample": sample},
        "runs": [{"loss": {"type": "sft"}}],
    }
    assert parse_study(study).rollouts.sample.engine.model == "big"
    with pytest.raises(ConfigError, match="leave teacher out"):
        parse_study(study | {"rollouts": {"sample": sample | {"teacher": "m"}}})
    with pytest.raises(ConfigError, match=r"evaluation\.engine: an endpoint .* weights of runs"):
        parse_study(study | {"evaluation": {"engine": served}})
    likeliest = {"decoding": {"top_logprobs": 4, "temperature": 1.0}}
    changed = served | {"extra": {"top_p": 0.9, "min_p": 0.1, "top_k": -1}}
    with pytest.raises(ConfigError, match=r"top_logprobs: engine\.extra sets min_p, top_p, so tokens are drawn"):
        parse_study(study | {"rollouts": {"sample": sample | likeliest | {"engine": changed}}})
    assert parse_study(study | {"rollouts": {"sample": sample | likeliest}}).rollouts.sample.decoding.top_logprobs == 4
    vllm = {"evaluation": {"engine": {"type": "vllm", "max_lora_rank": 16}}}
    with pytest.raises(ConfigError, match="trains all weights"):
        parse_study(study | vllm)
    with pytest.raises(ConfigError, match="have rank 32; set max_lora_rank to 32"):
        parse_study(study | vllm | {"training": {"lora": {"r": 32}}})
    with pytest.raises(ConfigError, match=r"vllm.max_lora_rank: Input should be 8, 16,.* 320 or 512"):
        parse_study(study | {"evaluation": {"engine": {"type": "vllm", "max_lora_rank": 24}}})
    assert parse_study(study | vllm | {"training": {"lora": {"r": 16}}}).evaluation.engine.type == "vllm"
    with pytest.raises(ConfigError, match=r"there is no 'vlm'; did you mean 'vllm'"):
        parse_study(study | {"evaluation": {"engine": {"type": "vlm"}}})


def test_mixtures_of_adapters_that_vllm_is_not_started_for_are_refused_with_what_to_set():
    def study(most, *targets, r=12, lr=(1e-4, 2e-4, 3e-4), **geometry):
        lora = {"r": r} | ({"target_modules": list(targets)} if targets else {})
        return parse_study(
            {
                "name": "s",
                "student": {"model": "m"},
                "rollouts": {"read": [{"type": "jsonl", "path": "x"}]},
                "training": {"lora": lora, "lr": list(lr)},
                "runs": [{"loss": {"type": "sft"}}],
                "evaluation": {"engine": {"type": "vllm", "max_lora_rank": most}},
                "geometry": {"matched_paths": None, "paths": {"accuracy_problems": 0}, "compressibility": None}
                | geometry,
            }
        )

    assert study(16)
    with pytest.raises(
        ConfigError, match=r"evaluation\.engine: .*2 runs .* rank 24; set max_lora_rank to 32.* geometry\.paths to 0"
    ):
        study(16, paths={})
    assert study(32, paths={})
    assert study(16, paths={}, lr=(1e-4,))
    assert study(16, paths={"pairs": "base"})
    with pytest.raises(ConfigError, match=r"3 runs .* rank 36; set max_lora_rank to 64.* geometry\.soups to 0"):
        study(32, soups={"accuracy_problems": 8})
    assert study(64, soups={"accuracy_problems": 8})
    searched = {
        "name": "s",
        "student": {"model": "m"},
        "rollouts": {"read": [{"type": "jsonl", "path": "x"}]},
        "training": {"lora": {"r": 12}, "lr": {"log_uniform": [1e-5, 1e-3]}},
        "sweep": {"search": "optuna", "samples": 4},
        "runs": [{"loss": {"type": "sft"}}],
        "evaluation": {"engine": {"type": "vllm", "max_lora_rank": 16}},
    }
    with pytest.raises(ConfigError, match=r"2 runs .* rank 24; set max_lora_rank to 32"):
        parse_study(searched)
    with pytest.raises(ConfigError, match=r"rank 600; vLLM takes none above 512; choose the engine local"):
        study(512, paths={}, r=300)
    apart = [LoraSettings(r=12, target_modules=(name,)) for name in ("q_proj", "v_proj")]
    assert VllmSettings(max_lora_rank=16).unfit_mixture(apart, 2) is None
    everywhere = LoraSettings(r=8, target_modules="all-linear")
    assert "rank 20;" in VllmSettings(max_lora_rank=16).unfit_mixture([*apart, everywhere], 2)
