"""The store: everything a study makes, content-keyed, under a local path or a URI."""

from raygeo.store.folders import Folders
from raygeo.store.tables import Tables


class Store(Tables, Folders):
    """Open the store at ``location``, a path or any URI ``pyarrow.fs`` understands; ``create`` it if need be.

    A unit or folder either exists whole or not at all, so any process may be killed at any time. Instances pickle as
    their location, so workers on other machines open the same store.

    Raises:
        StoreError: the location cannot be reached or written, or does not exist and ``create`` is false.
    """
