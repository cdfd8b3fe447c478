"""The exceptions a user can meet. Each message says what was read, what was wrong and what to do.

Every class takes one message, so that instances survive pickling on their way through Ray.
"""

from raygeo.paths import without_credentials


class RaygeoError(Exception):
    """Root of all errors raygeo raises on purpose; what its message says of URIs is without passwords and keys."""

    def __init__(self, message: object = ""):
        super().__init__(without_credentials(str(message)))


class ConfigError(RaygeoError, ValueError):
    """A study file, an override or a command-line value is wrong."""


class DataError(RaygeoError, ValueError):
    """Rollouts, prompts or answers cannot be used as they are."""


class UnusableError(DataError):
    """Of the rollouts, prompts or answers none can be used, however many there are of them."""


class StoreError(RaygeoError, OSError):
    """The store cannot be read or written, or holds something unexpected."""


class NoStoreError(StoreError):
    """There is no store at the place."""


class FullStoreError(StoreError):
    """The disk that the store is written to is full."""


class BusyStoreError(StoreError):
    """Another process is working on the store."""


class StudentError(RaygeoError, ValueError):
    """A model or tokenizer cannot be loaded or does not fit the study."""


class EndpointError(RaygeoError, RuntimeError):
    """A server that completions are asked of is not there, refuses, or does not answer in time."""


class DeltaError(RaygeoError, ValueError):
    """A weight delta is missing, empty, not finite, or does not fit its base model."""


class ClusterError(RaygeoError, RuntimeError):
    """The cluster cannot hold what the study asks of it."""


class TrainingError(RaygeoError, RuntimeError):
    """A training run failed for a reason other than divergence."""


class TrackingError(RaygeoError, RuntimeError):
    """MLflow cannot be read or written."""


class WorkloadError(RaygeoError, RuntimeError):
    """Tasks of a fanned-out workload failed; the message names each one."""


class LostProcessError(WorkloadError):
    """A process that a task had asked others of was lost, or found no place; the task may be tried again."""
