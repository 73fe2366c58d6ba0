"""The error tree. One root; what a user reads is one line: what is wrong, where, what to do.

    GPUStackError
    ├── InvalidInput        the request or option can never work as given
    ├── SettingsError       an option, variable or configuration key is wrong (exit status 2)
    ├── NotFound            the named thing does not exist
    ├── Conflict            it exists already, or is in a state that forbids this
    ├── Unauthenticated     nobody has said who they are
    ├── Forbidden           they have, and may not
    ├── Throttled           too many attempts; carries the seconds to wait
    ├── Unavailable         cannot be answered now; carries the seconds to wait
    ├── Refused             another machine will not have us until a person changes something
    └── NewerData           the data was written by a newer version of GPUStack

HTTP status codes are given to these in one place for each API: ``gpustack.server.errors``, and
``gpustack.dataplane.errors`` for what OpenAI's clients read.
"""

from __future__ import annotations


class GPUStackError(Exception):
    """Anything that a user should read as one line, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidInput(GPUStackError):
    """The input can never work as given."""


class SettingsError(GPUStackError):
    """An option, an environment variable or a key of the configuration file is wrong."""


class NotFound(GPUStackError):
    """The named thing does not exist."""


class Conflict(GPUStackError):
    """The thing exists already, or its state forbids the request."""


class Unauthenticated(GPUStackError):
    """The request does not say (or not truthfully) who makes it."""


class Forbidden(GPUStackError):
    """The principal is known and may not do this."""


class _Later(GPUStackError):
    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        #: Seconds after which another attempt makes sense.
        self.retry_after = retry_after


class Throttled(_Later):
    """Too many attempts; wait ``retry_after`` seconds."""


class Unavailable(_Later):
    """Cannot be answered now; try again after ``retry_after`` seconds."""


class Refused(GPUStackError):
    """Another machine will not have us, and asking again is no use until a person changes something."""


class NewerData(GPUStackError):
    """The data was written by a newer version of GPUStack than this one."""


def system_line(error: OSError) -> str:
    """Return what the system refused as one line that names the file."""
    path = error.filename2 or error.filename
    why = error.strerror or str(error) or type(error).__name__
    return f"{path}: {why}; change its owner, make room, or move it away" if path else why
