"""Where a store is: a path, or a URI that pyarrow understands, which may end in a query."""

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

from pyarrow import fs

from raygeo.errors import StoreError
from raygeo.paths import local_path
from raygeo.settings import content_key

_JOB_FOLDER = re.compile(r"/runtime_resources/working_dir_files/[^/]+(/|$)")
QUOTE = "'"
"""What queries of MLflow cannot hold."""
open_uri = fs.FileSystem.from_uri


def is_uri(location: str) -> bool:
    """Whether a location is not on this machine's own file system."""
    return urlparse(location).scheme not in ("", "file")


def local_root(location: str) -> Path:
    """The absolute path of a local location. Raises ``ValueError`` where it can be none."""
    named = unquote(urlparse(location).path) if location.startswith("file:") else location
    return local_path(named).resolve()


def extended(location: str, more: str) -> str:
    """A location with ``more`` at the end of its path: before the query of a URI (``?endpoint_override=...``)."""
    path, mark, query = location.partition("?") if is_uri(location) else (location, "", "")
    return path.rstrip("/") + more + mark + query


def tracked_as(shown: str) -> str:
    """The content key of a study in MLflow, by where its store is ``shown`` to be."""
    return f"study:{content_key(shown) if QUOTE in shown else shown}"


def check_outlives_job(location: str) -> None:
    """Refuse a store in the working directory that Ray unpacked for a job.

    Raises:
        StoreError: it is there.
    """
    if not is_uri(location) and _JOB_FOLDER.search(str(local_root(location))):
        raise StoreError(
            f"the store {location} lies in the working directory of a Ray job, which Ray makes on one node and deletes "
            "after the job: give a path or URI that all nodes share, with --store or as `store` in the study."
        )
