"""Full disks and quotas: how the system, libraries and object stores say that there is no more room."""

import errno
import re

# The system; torch.save and numpy, which lose its reason; MinIO, Ceph and HTTP, for object stores.
_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|unexpected pos \d+ vs \d+|file write failed|requested and \d+ written"
    r"|QuotaExceeded|StorageFull|InsufficientStorage|InsufficientCapacity|HTTP status 507"
)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk or a quota is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
