"""The errors a user may need to read, each as one line.

::

    RestKVError
    ├── ConfigError (ValueError)
    ├── InputError
    ├── ModelError
    │   └── UnsupportedModelError
    ├── PlanError
    ├── BusyError
    ├── SessionFileError
    │   └── UnreadableFileError
    └── NativeError
        ├── LibraryNotFoundError
        ├── AbiMismatchError
        └── CacheFullError
"""


class RestKVError(Exception):
    """Anything a user may need to read."""


class ConfigError(RestKVError, ValueError):
    """An option is out of bounds: its name, its value, the rule."""


class InputError(RestKVError):
    """A document or a prompt cannot be read: missing, empty, broken, encrypted, or not text."""


class ModelError(RestKVError):
    """The GGUF file cannot be opened or read."""


class UnsupportedModelError(ModelError):
    """The model was opened, but its cache cannot be evicted, whatever is asked."""


class PlanError(RestKVError):
    """No plan can meet the request, or a plan does not fit the cache."""


class BusyError(RestKVError):
    """Another call uses the model, or took its cache over."""


class SessionFileError(RestKVError):
    """A file of ours cannot be written, read or used here: which, why, and what to do."""


class UnreadableFileError(SessionFileError):
    """A file of ours that may be whole cannot be read now: rights, the disk, open files, memory."""


class NativeError(RestKVError):
    """A call into the native library failed: function, status, native message.

    Attributes
    ----------
    status : int
        What the library returned, see llama-restkv.h; 0 where it was not asked.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class LibraryNotFoundError(NativeError):
    """The native library is missing: where it was looked for, how to build it."""


class AbiMismatchError(NativeError):
    """Library and package disagree: both numbers and the path."""


class CacheFullError(NativeError):
    """No free rows are left for the next batch."""
