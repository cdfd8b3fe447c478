"""MLflow: one parent run a study, one child a trial (and one for the base), told by the driver alone.

What is to be told goes into a queue, and a thread sends it, so that nothing waits for MLflow. While MLflow does not
answer, the queue is kept in the store (``outbox``), whence this or the next command sends it. Runs are found again by
tag, so that a study that resumes, or runs again over a finished store, adds to its own runs.
"""

from raygeo.tracking.server import tracking_uri
from raygeo.tracking.tracking import Data, Status, Tracking, check_tracking, send_queued
from raygeo.tracking.trials import TrialLogger, status_of

__all__ = ["Data", "Status", "Tracking", "TrialLogger", "check_tracking", "send_queued", "status_of", "tracking_uri"]
