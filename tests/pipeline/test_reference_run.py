from raygeo.pipeline.reference_run import reference_run
from raygeo.tables import BASE


def runs(**status):
    return [{"run": BASE, "status": "finished"}, *({"run": name, "status": one} for name, one in status.items())]


def trials(**known):
    return [{"run": name, "entry": entry, "rank": rank} for name, (entry, rank) in known.items()]


def test_it_is_the_first_that_finished():
    assert reference_run(runs(a="diverged", b="finished", c="finished")) == "b"


def test_a_named_run_counts_if_it_finished():
    assert reference_run(runs(a="finished", b="finished"), named="b") == "b"
    assert reference_run(runs(a="failed", b="finished", c="stopped"), named="c") == "b"


def test_none_that_finished_leaves_the_first():
    assert reference_run(runs(a="failed", b="stopped")) == "a"
    assert reference_run(runs(a="failed", b="stopped"), named="b") == "b"
    assert reference_run(runs()) == ""


def test_in_a_sweep_it_is_the_best_of_the_entry_of_the_first_that_finished():
    swept = runs(a="stopped", b="finished", c="finished", d="finished")
    assert reference_run(swept, trials(a=(0, None), b=(0, 3), c=(0, 2), d=(1, 1))) == "c"
    assert reference_run(swept, trials(a=(0, 1), b=(0, 3), c=(1, 2), d=(1, 1))) == "b"
    assert reference_run(swept, trials(a=(0, None), b=(0, None), c=(0, None), d=(1, None))) == "b"
    assert reference_run(swept, trials(a=(0, None), b=(0, 3), c=(0, 2), d=(1, 1)), named="b") == "b"
    assert reference_run(swept, trials(a=(0, None), b=(0, 3), c=(0, 2), d=(1, 1)), named="a") == "b"
