"""Lines of a log name the study, and the run or task."""

import logging

import pytest

from raygeo.logs import about, name_lines

log = logging.getLogger("raygeo.models.fitting")


@pytest.fixture
def no_handlers(monkeypatch):
    monkeypatch.setattr(logging.getLogger("raygeo"), "handlers", [])


def test_a_line_names_what_it_is_about(no_handlers, capsys):
    name_lines()
    name_lines()
    with about("mine"):
        with about("paths", "sft-dpo"):
            log.warning("no memory for a batch of %d", 8)
        log.warning("an actor died")
    log.warning("done")
    log.info("nobody reads this")
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "WARNING mine: paths: sft-dpo: no memory for a batch of 8",
        "WARNING mine: an actor died",
        "WARNING done",
    ]
