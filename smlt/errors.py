"""Every error that smlt raises on purpose.

SmltError                        base: one sentence that says what, where and what to do
├── UserError                    the call, the code or the data given to smlt is wrong (exit code 2)
│   ├── ConfigError              an option, a file or an environment variable
│   └── TaskError                the user's task: cannot be found, imported, or lacks a method
├── FrameError                   bytes that are no frame, or not the frame that was expected
├── StoreError                   a store did not do what it was asked
│   ├── StoreUnreachableError    no connection within the time limit
│   ├── StoreLostError           the store answers, but has forgotten this generation
│   ├── StoreFullError           no room: the disk, maxmemory, a quota
│   ├── NotFoundError            no such key
│   └── PreconditionError        a conditional write lost its race
├── AbortedError                 the generation was aborted; carries who and why
├── RankMissingError             a rank's shard did not come within the time limit
├── CheckpointError              a checkpoint is incomplete, damaged or of another version
├── JobHeldError                 another client leads the job: who, and since when
├── CloudError                   the Lambda service refused or failed
└── JobFailedError               the job ended without its result (exit code 1)
"""


class SmltError(Exception):
    """Base of all errors raised on purpose; its text is one sentence fit for a user."""


class UserError(SmltError):
    """What the user gave is wrong; nothing has been started or changed."""


class ConfigError(UserError):
    """An option, a line of smlt.toml or an environment variable cannot be used."""


class TaskError(UserError):
    """The user's task cannot be found or imported, or does not have the shape of a task."""


class FrameError(SmltError):
    """Bytes that are no frame, or not the frame that the receiver expects."""


class StoreError(SmltError):
    """A store did not do what it was asked."""


class StoreUnreachableError(StoreError):
    """No connection to the store within the time limit."""


class StoreLostError(StoreError):
    """The store answers but has lost this generation's marker: it was restarted empty."""


class StoreFullError(StoreError):
    """No room left: the disk, the server's maxmemory, or a quota."""


class NotFoundError(StoreError):
    """The key does not exist."""


class PreconditionError(StoreError):
    """A conditional write found that another writer came first."""


class AbortedError(SmltError):
    """The generation was aborted: by whom and why is in the text."""


class RankMissingError(SmltError):
    """A rank's shard did not arrive within the time limit; names rank, step and shard."""


class CheckpointError(SmltError):
    """A checkpoint is incomplete, damaged, or of a version that cannot be read."""


class JobHeldError(SmltError):
    """Another client leads the job; the text says who, and since when."""


class CloudError(SmltError):
    """The Lambda service, real or embedded, refused a call or failed at it."""


class JobFailedError(SmltError):
    """The job ended without reaching its end; the newest checkpoint is kept."""
