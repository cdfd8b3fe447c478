"""Where a store is: a path, or a URI that pyarrow understands, which may end in a query."""

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

from pyarrow import fs

_JOB_FOLDER = re.compile(r"/runtime_resources/working_dir_files/[^/]+(/|$)")
open_uri = fs.FileSystem.from_uri


def is_uri(location: str) -> bool:
    """Whether a location is not on this machine's own file system."""
    return urlparse(location).scheme not in ("", "file")


def local_root(location: str) -> Path:
    """The absolute path of a local location."""
    named = unquote(urlparse(location).path) if location.startswith("file:") else location
    return Path(named).expanduser().resolve()


def extended(location: str, more: str) -> str:
    """A location with ``more`` at the end of its path: before the query of a URI (``?endpoint_override=...``)."""
    path, mark, query = location.partition("?") if is_uri(location) else (location, "", "")
    return path.rstrip("/") + more + mark + query


def in_job_folder(root: str) -> bool:
    """Whether a path lies in the working directory that Ray unpacked for a job, and deletes when the job is over."""
    return _JOB_FOLDER.search(root) is not None
