"""raygeo: what each offline reasoning loss does to the weights of a student."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raygeo.store import Store

__version__ = "0.1.0"


def open(location: str) -> "Store":
    """Open a finished study: ``raygeo.open("store/quickstart").table("runs").to_pandas()``.

    Raises:
        StoreError: there is no store at ``location``.
    """
    from raygeo.store import Store

    return Store(location, create=False)
