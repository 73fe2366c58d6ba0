"""Turns what a database plugin raises into the errors a user can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gpustack.kit.errors import Conflict, GPUStackError, InvalidInput, NotFound, SettingsError, Unavailable
from gpustack.plugin.databases import DatabaseError, Trouble

#: What the plugin of a database raises.
OF_THE_DATABASE = (OSError, DatabaseError)
_LOSSES = frozenset({Trouble.LOST, Trouble.NOT_NOW})


class Unique(GPUStackError):
    """A unique constraint said no; repositories turn it into a Conflict that names the thing."""

    def __init__(self, constraint: str) -> None:
        super().__init__("it exists already")
        self.constraint = constraint


class Dangling(GPUStackError):
    """A foreign key said no: the row that is referred to does not exist."""

    def __init__(self, constraint: str) -> None:
        super().__init__("what it refers to does not exist")
        self.constraint = constraint


class Undone(Unavailable):
    """The database went away in the middle of a transaction, all of which it undid: it may be run again."""


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Let no error of a database plugin out. ``where`` names the database, without its password."""
    try:
        yield
    except DatabaseError as error:
        raise _ours(error, where) from error
    except OSError as error:
        raise unavailable(error, where) from error


def is_loss(error: BaseException | None) -> bool:
    """Tell whether ``error``, of a database plugin, means that the connection or the whole database is lost."""
    if isinstance(error, DatabaseError):
        return error.trouble in _LOSSES
    return isinstance(error, OSError)  # TimeoutError is one


def _ours(error: DatabaseError, where: str) -> GPUStackError:
    match error.trouble:
        case Trouble.UNIQUE:
            return Unique(error.constraint)
        case Trouble.DANGLING:
            return Dangling(error.constraint)
        case Trouble.BAD_VALUE:
            return InvalidInput(f"the database cannot store this value: {error.message}")
        case Trouble.NO_RIGHT:
            return SettingsError(
                f"{where}: {error.message}; give GPUStack's user the rights to this database"
            )
        case Trouble.REFUSED:
            return SettingsError(error.message)
        case Trouble.LOST | Trouble.NOT_NOW | Trouble.TRY_AGAIN:
            return unavailable(error, where)
    return GPUStackError(f"{where}: {error.message}")


def unavailable(error: BaseException, where: str) -> Unavailable:
    """Return the error for a database that cannot answer now."""
    why = " ".join(str(error).split()) or type(error).__name__
    return Unavailable(f"{where} does not answer now: {why}", retry_after=1.0)


@contextmanager
def conflicts(unique: Mapping[str, str], dangling: Mapping[str, str] | None = None) -> Iterator[None]:
    """Name what exists already (Conflict) or what is missing (NotFound), by the name of the constraint."""
    try:
        yield
    except Unique as error:
        raise Conflict(unique.get(error.constraint, error.message)) from error
    except Dangling as error:
        raise NotFound((dangling or {}).get(error.constraint, error.message)) from error
