"""What every resource of the API has in common: envelopes, errors and events."""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints

T = TypeVar("T")


class Input(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")


class FromWorker(Input):
    """What a worker sends. One of the next version may say more than this one knows, which is left out."""

    model_config = ConfigDict(extra="ignore")


class Output(BaseModel):
    """What the server answers."""

    model_config = ConfigDict(extra="ignore")


class Record(Output):
    """A stored thing."""

    id: int
    created_at: datetime
    updated_at: datetime


#: What people call a thing: spaces around it are a slip. Everywhere else they belong to what was sent.
Title = Annotated[str, StringConstraints(strip_whitespace=True)]

#: Names that appear in URLs and on command lines: no spaces, no slashes at the ends.
Name = Annotated[
    Title,
    StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$"),
]


class Pagination(Output):
    """Where a page lies in the whole list. ``perPage`` 0 means that the page holds everything."""

    page: int
    perPage: int
    total: int
    totalPage: int


class Page(Output, Generic[T]):
    """One page of a list."""

    items: list[T]
    pagination: Pagination


class ErrorBody(Output):
    """An error of the management API."""

    code: int
    reason: str
    message: str


class EventType(IntEnum):
    """What happened to a watched thing."""

    CREATED = 1
    UPDATED = 2
    DELETED = 3
    UNKNOWN = 4
    HEARTBEAT = 5


class Event(Output):
    """One line of a watch stream.

    ``number`` grows by commit; a watch opened with ``since=number`` goes on right after it. The lines that
    replay what existed when the watch began carry the number up to which the replay is complete.
    """

    type: EventType
    id: int
    data: dict[str, Any]
    changed_fields: dict[str, Any] = {}
    number: int = 0
