"""Make what comes with raygeo: the base student, the teacher and the rollouts of the quick start.

``python -m checks.precomputed`` makes them anew by the shipped recipe and puts them into ``raygeo/precomputed``:
that is due when a recipe or a revision has changed. Processors round differently, so these are other bits each time.
"""

import shutil
import tempfile
from pathlib import Path

import raygeo
from raygeo.pipeline import precomputed
from raygeo.pipeline.published import KIND
from raygeo.store import Store


def main() -> None:
    """Make them, and replace those that are there."""
    place = precomputed.PLACE
    with tempfile.TemporaryDirectory() as folder:
        precomputed.PLACE = Path(folder) / "nothing"
        precomputed.PLACE.mkdir()
        store = Path(folder) / "made"
        raygeo.run("quickstart", store=str(store), until="rollouts")
        shutil.rmtree(place, ignore_errors=True)
        keep(Store(store, create=False), Store(place))


def keep(made: Store, place: Store) -> None:
    """Copy students and sampled rollouts of one store into another."""
    for key in made.folders(KIND):
        shutil.copytree(made.folder(KIND, key), place.path(KIND, key))
    sampled = sorted(made.finished(["rollouts"]) - made.finished(["rollouts", "counts"]))
    place.write_units({key: {"rollouts": made.read_unit("rollouts", key)} for key in sampled})


if __name__ == "__main__":
    main()
