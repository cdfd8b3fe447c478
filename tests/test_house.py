"""What tests may lean on: names that are meant for others, and no jobs."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
FILES = sorted(HERE.rglob("*.py"))
OURS = ("raygeo", "checks", "benchmarks", "jobs")
PRIVATE = re.compile(r"(?:raygeo|checks|benchmarks)(?:\.\w+)*\._[a-z]\w*")


def leans_on(source: str) -> Iterator[str]:
    """Full names that a module takes from this repository, by importing them or, to patch them, as text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and PRIVATE.fullmatch(node.value):
            yield node.value


def faults(source: str) -> list[str]:
    """Names of ours that no test may lean on."""
    ours = [name.split(".") for name in leans_on(source) if name.partition(".")[0] in OURS]
    return [".".join(parts) for parts in ours if parts[0] == "jobs" or any(re.match("_[a-z]", part) for part in parts)]


def test_nothing_private_and_no_job_is_imported():
    found = {str(file.relative_to(HERE)): faults(file.read_text()) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


def test_what_is_refused():
    refused = "from raygeo.x import _y\nimport jobs.study\nfrom checks._z import w\npatch('raygeo.a.b._c', 0)"
    assert len(set(faults(refused))) == 4
    assert faults("from torch import _C\nfrom raygeo import __main__\n'jobs/_x'") == []


def test_no_two_modules_have_one_name():
    names = Counter(file.name for file in FILES)
    assert {name for name, count in names.items() if count > 1} <= {"conftest.py"}
