"""The log file of a study, kept in its store: ``logs/<name>.log``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from raygeo.errors import StoreError
from raygeo.logs import detail, log_to
from raygeo.store import Store
from raygeo.store.contents import LOGS
from raygeo.versions import versions


@contextmanager
def logged(store: Store, name: str) -> Iterator[None]:
    """Add what the console shows, warnings, details and the traceback of what ends it to the log of a study.

    In a remote store the file appears at the end.

    Raises:
        StoreError: it cannot be opened.
    """
    place = f"{LOGS}/{name}.log"
    with ExitStack() as stack:
        file = Path(store.path(place))
        if not store.is_local:
            file = stack.enter_context(store.scratch_folder()) / "study.log"
            file.write_bytes(store.read_bytes(place) or b"")
            stack.callback(_keep, store, place, file)
        with store.writing(str(file)):
            file.parent.mkdir(exist_ok=True)
            stream = file.open("a", encoding="utf-8")
        stack.callback(_close, stream)
        stack.enter_context(log_to(stream))
        detail.debug("versions: %s", ", ".join(f"{package} {number}" for package, number in versions().items()))
        try:
            yield
        except BaseException:
            detail.exception("ended by")
            raise


def _close(stream: TextIO) -> None:
    with suppress(OSError):  # a full disk: what is left to write is lost, and what ended the study is what counts
        stream.close()


def _keep(store: Store, place: str, file: Path) -> None:
    with suppress(StoreError):  # whatever it tells of is more to the point
        store.write_bytes(place, file.read_bytes())
