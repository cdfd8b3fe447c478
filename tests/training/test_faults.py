"""Real faults on real Ray: the cases of ``jobs/faults.py`` that no other test covers."""

import pytest
from faults import ask_too_much, break_run


def test_a_killed_worker_of_a_sharded_run_costs_nothing_but_time(ray_session, tmp_path):
    result = break_run("kill-zero3-lora", tmp_path)
    assert result.status == "finished"
    assert result.gap == 0
    assert 1 <= result.redone <= 20
    assert any("goes on from its last checkpoint" in note for note in result.notes)
    assert_cpus_are_free(ray_session)


def test_lack_of_memory_halves_the_micro_batch(ray_session, tmp_path):
    result = break_run("memory", tmp_path)
    assert result.status == "finished"
    assert result.notes == ["out of memory at micro_batch 8; halved, same batch_size"]
    assert result.gap == pytest.approx(0, abs=1e-5)
    assert_cpus_are_free(ray_session)


def test_what_cannot_be_placed_is_refused_at_once(ray_session, tmp_path):
    assert "64 x (1 CPU)" in ask_too_much(tmp_path).fault


def assert_cpus_are_free(ray):
    from time import monotonic, sleep

    deadline = monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert monotonic() < deadline, ray.available_resources()
        sleep(0.2)
