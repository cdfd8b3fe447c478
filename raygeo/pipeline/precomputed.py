"""What comes with raygeo already made, so that the quick start begins with the same bits everywhere: its base student,
its teacher, and the teacher's rollouts.

``raygeo/precomputed`` is a store that is only read. What it has goes by content keys, so that any other recipe, or
another revision of the code, finds nothing there and makes its own.
"""

import shutil
from pathlib import Path

from raygeo.store import Store
from raygeo.store.manifest import COMPLETE
from raygeo.workload import Workload

PLACE = Path(__file__).parents[1] / "precomputed"


def is_taken(store: Store, kind: str, key: str) -> bool:
    """Whether the folder ``<kind>/<key>`` of ``store`` is the one that comes with raygeo, file by file."""
    here, made = store.manifest(kind, key), Store(PLACE, create=False).manifest(kind, key)
    return here is not None and made is not None and here.digests == made.digests


def take_folder(store: Store, kind: str, key: str) -> bool:
    """Put the folder ``<kind>/<key>`` into ``store`` if it comes with raygeo; whether it does."""
    made = Store(PLACE, create=False)
    if not made.has_folder(kind, key):
        return False
    with store.making(kind, key) as folder:
        for file in Path(made.folder(kind, key)).iterdir():
            if file.name != COMPLETE:
                shutil.copyfile(file, folder / file.name)  # and no modes, which may be those of a read-only package
    return True


def take_units(store: Store, workload: Workload) -> int:
    """Put the units of ``workload`` that ``store`` lacks and that come with raygeo into it; how many there were."""
    made = Store(PLACE, create=False)
    there, lacking = made.finished(workload.tables), store.finished(workload.tables)
    wanted = [task.key for task in workload.tasks() if task.key in there and task.key not in lacking]
    if wanted:
        store.write_units({key: {name: made.read_unit(name, key) for name in workload.tables} for key in wanted})
    return len(wanted)
