"""Turns what the database driver raises into the errors a user can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import asyncpg

from gpustack.kit.errors import Conflict, GPUStackError, InvalidInput, NotFound, SettingsError, Unavailable

#: Classes of SQLSTATE after which the same request may well succeed: connection, rollback, resources, operator.
_PASSING = ("08", "40", "53", "55", "57")
#: A server that is now a read-only standby: the fail-over is not over yet.
_READ_ONLY = "25006"


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
    """Let no driver error out. ``where`` names the database, without its password."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise Unique(error.constraint_name or "") from error
    except asyncpg.ForeignKeyViolationError as error:
        raise Dangling(error.constraint_name or "") from error
    except (
        asyncpg.DataError,
        asyncpg.CharacterNotInRepertoireError,
        asyncpg.UntranslatableCharacterError,
    ) as error:
        raise InvalidInput(f"the database cannot store this value: {_line(error)}") from error
    except asyncpg.PostgresError as error:
        raise _from_server(error, where) from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise unavailable(error, where) from error


def _from_server(error: asyncpg.PostgresError, where: str) -> GPUStackError:
    state = error.sqlstate or ""
    if state.startswith(_PASSING) or state == _READ_ONLY:
        return unavailable(error, where)
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return SettingsError(f"{where}: {_line(error)}; give GPUStack's user the rights to this database")
    return GPUStackError(f"{where}: {_line(error)}")


def unavailable(error: BaseException, where: str) -> Unavailable:
    """Return the error for a database that cannot answer now."""
    why = _line(error) or type(error).__name__
    return Unavailable(f"{where} does not answer now: {why}", retry_after=1.0)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextmanager
def conflicts(unique: Mapping[str, str], dangling: Mapping[str, str] | None = None) -> Iterator[None]:
    """Name what exists already (Conflict) or what is missing (NotFound), by the name of the constraint."""
    try:
        yield
    except Unique as error:
        raise Conflict(unique.get(error.constraint, error.message)) from error
    except Dangling as error:
        raise NotFound((dangling or {}).get(error.constraint, error.message)) from error
