"""The engine that asks a server, against ``transformers serve`` behind a proxy that drops, delays and refuses."""

import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
import torch
from study_cases import draw_rollouts
from tiny import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("openai")  # which `transformers serve` imports

from raygeo.generation.endpoint import EndpointEngine, EndpointSettings
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.loading import load_student
from raygeo.toy.word_problems import word_tokenizer

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

PROMPTS = [row["prompt"] for row in draw_rollouts(6, samples=1).to_pylist()]
AS_IT_IS = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("served") / "student", word_tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), **SHAPE, max_position_embeddings=128, initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)  # of a Qwen3 the server parses what that family writes
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(AS_IT_IS)
    return folder


@pytest.fixture(scope="module")
def server(student):
    """The address of a running server of the student."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(student)]
    log = (student.parent / "serve.log").open("w")
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                requests.get(f"{url}/v1/models", timeout=10)
                break
            except requests.RequestException:
                assert process.poll() is None, (student.parent / "serve.log").read_text()[-2000:]
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.fixture
def proxy(server):
    """A proxy of the server, and the paths that came through; of its first requests only the fourth is answered."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply(requests.get(server + self.path, timeout=60))

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                seen.append(self.path)
                number = len(seen)
            if number == 1:
                self.close_connection = True  # dropped
            elif number == 2:
                self.refuse(429, {"Retry-After": "0.1"})
            elif number == 3:
                self.refuse(500, {})
            else:
                if number == 5:
                    time.sleep(3)  # longer than the engine waits
                self.reply(requests.post(server + self.path, body, headers=dict(self.headers), timeout=60))

        def refuse(self, status, headers):
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def reply(self, response):
            self.send_response(response.status_code)
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, *_):
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=front.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{front.server_port}/v1", seen
    front.shutdown()
    front.server_close()


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_greedy_texts_are_the_local_ones_through_a_proxy_that_fails(student, proxy, api):
    url, seen = proxy
    model, tokenizer = load_student(student)
    settings = EndpointSettings(
        base_url=url, model=str(student), api=api, timeout=2.5, deadline=60, backoff=0.05, concurrency=2
    )
    with settings.students().mixed([]) as served:
        engine = settings.engine(served, PlainRenderer(tokenizer), 1)
    assert isinstance(engine, EndpointEngine)
    request = Request(PROMPTS, max_new_tokens=12)
    found = engine.generate(request)
    expected = LocalEngine(model, PlainRenderer(tokenizer)).generate(request)
    assert [(c.text.strip(), c.truncated) for (c,) in found] == [(c.text.strip(), c.truncated) for (c,) in expected]
    assert len(seen) >= len(PROMPTS) + 4
    assert engine.usage.requests == len(PROMPTS)
    assert engine.usage.completion_tokens > 0
