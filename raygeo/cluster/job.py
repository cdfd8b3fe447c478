"""What holds of a process that ``ray job submit`` started."""

from pathlib import Path
from urllib.parse import urlparse

from raygeo.errors import ConfigError


def check_outlives_job(location: str) -> None:
    """Refuse a store in the folder that Ray unpacks a job's working directory into: on one node, for a time.

    Raises:
        ConfigError: it is there.
    """
    parsed = urlparse(location)
    if parsed.scheme in ("", "file") and "working_dir_files" in Path(parsed.path).resolve().parts:
        raise ConfigError(
            f"the store {location!r} would lie in the job's working directory, which only this node has and Ray "
            "removes after the job. Give --store a folder that every node sees, or a URI such as s3://bucket/name."
        )
