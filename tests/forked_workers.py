"""Workers of Ray that are forked from one process, which has imported what they need: it takes each of them seconds.

Ray starts this file in place of its ``setup_worker.py``, to ask for a worker; started with the descriptor of a socket,
it is the process that forks. Clusters that tests start by commands of their own have workers as Ray starts them.
"""

import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

SOCKET = "RAYGEO_TESTS_FORK_AT"
"""The variable that says where to ask for a worker."""
LARGEST = 2**17
"""The most bytes of a request, which comes in one piece."""
PRELOADED = (
    "deepspeed", "peft", "transformers.models.qwen3.modeling_qwen3", "transformers.integrations.deepspeed",
    "raygeo.training.engine", "raygeo.training.loop", "raygeo.evaluation.answers", "raygeo.data.sampling",
    "raygeo.data.reference", "raygeo.toy.builtin", "raygeo.analyses.registry",
)  # fmt: skip
WITH_RAY = ("ray.train.torch", "ray._private.node", "raygeo.cluster.fanout", "raygeo.training.sweep",
            "raygeo.training.worker")  # fmt: skip
"""What reads variables of Ray as it is imported; they are known when the first worker is asked for."""
_forking: list[subprocess.Popen[bytes]] = []


def fork_workers() -> None:
    """Have the Ray that this process will embed fork its workers."""
    if _forking or sys.platform != "linux":
        return
    from ray._private import ray_constants

    name = f"raygeo-tests-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    listener.listen(64)
    forking = subprocess.Popen(
        [sys.executable, __file__, str(listener.fileno())],
        stdin=subprocess.PIPE,  # at its end the process ends, and that is with this one
        stdout=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )
    listener.close()
    _forking.append(forking)
    assert forking.stdout is not None
    while forking.stdout.readline() not in (b"ready\n", b""):
        pass
    os.environ[SOCKET] = name
    ray_constants.SETUP_WORKER_FILENAME = __file__


def ask(arguments: list[str]) -> None:
    """Ask for a worker; one that needs more than variables of its own is started as Ray would."""
    given = dict(part.removeprefix("--").split("=", 1) for part in arguments if part.startswith("--") and "=" in part)
    context = json.loads(given.get("serialized-runtime-env-context") or "{}")
    command = [part for part in arguments if not part.startswith(("--serialized-runtime-env-context=", "--language="))]
    environment = os.environ | (context.get("env_vars") or {})
    request = json.dumps([command, dict(environment), str(Path.cwd())]).encode()
    if context.get("command_prefix") or given.get("language") != "PYTHON" or len(request) > LARGEST:
        import ray._private.workers

        own = Path(ray._private.workers.__path__[0], "setup_worker.py")
        os.execv(sys.executable, [sys.executable, str(own), *arguments])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.connect(f"\0{environment[SOCKET]}")
        socket.send_fds(asked, [request], [0, 1, 2])


def await_request(listener: socket.socket) -> tuple[list[str], dict[str, str], str]:
    """Fork for every request, and return it in the new process."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none of them is waited for
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            os._exit(0)
        asked, _ = listener.accept()
        request, descriptors, _, _ = socket.recv_fds(asked, LARGEST, 3)
        asked.close()
        if WITH_RAY[0] not in sys.modules:
            os.environ.update(json.loads(request)[1])
            preload(WITH_RAY)
        if os.fork() == 0:
            listener.close()
            for standard, descriptor in enumerate(descriptors):
                os.dup2(descriptor, standard)
                os.close(descriptor)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)
            return json.loads(request)
        for descriptor in descriptors:
            os.close(descriptor)


def preload(names: Sequence[str]) -> None:
    """Import modules; what they hold stays in memory that is shared."""
    for name in names:
        import_module(name)
    gc.collect()
    gc.freeze()


def become_worker(command: list[str], environment: dict[str, str], folder: str) -> None:
    """Run Ray's worker in this process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    random.seed()
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        del sys.path[0]  # Ray's workers find no modules of tests
        preload(PRELOADED)
        import_module("raygeo.analyses.registry").analyses()
        import_module("raygeo.training.engine").import_deepspeed()
        become_worker(*await_request(socket.socket(fileno=int(sys.argv[1]))))
    else:
        ask(sys.argv[1:])
