import pytest

from raygeo.pipeline.search import is_settled
from raygeo.search.settings import Asha

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("status", "scheduler", "settled"),
    [("finished", None, True), ("diverged", None, True), ("stopped", Asha(), True), ("stopped", None, False)],
)
def test_a_stopped_run_is_settled_only_where_runs_may_be_stopped(store, status, scheduler, settled):
    store.write_unit("key", {"runs": [{"run": "a", "status": status}], "training_curves": []})
    store.complete_folder("deltas", "key")
    assert is_settled(store, "key", scheduler) == settled
    assert not is_settled(store, "other", scheduler)


def test_a_run_whose_weights_are_gone_is_trained_again(store):
    store.write_unit("key", {"runs": [{"run": "a", "status": "finished"}], "training_curves": []})
    assert not is_settled(store, "key", None)
