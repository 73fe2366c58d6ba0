"""What happens on an embedded server, for the program around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from gpustack.db import Feed, StoredEvent
from gpustack.schemas import EventType, ModelInstancePublic, ModelPublic, WorkerPublic

Kind = Literal["model", "instance", "worker"]
Change = Literal["created", "updated", "deleted"]

_KINDS: dict[str, tuple[Kind, type[ModelPublic | ModelInstancePublic | WorkerPublic]]] = {
    "models": ("model", ModelPublic),
    "model-instances": ("instance", ModelInstancePublic),
    "workers": ("worker", WorkerPublic),
}
_CHANGES: dict[EventType, Change] = {
    EventType.CREATED: "created",
    EventType.UPDATED: "updated",
    EventType.DELETED: "deleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One change, committed to the database. ``number`` grows with each."""

    number: int
    kind: Kind
    change: Change
    id: int
    #: The thing as it was right after the change; right before it, for one that was deleted.
    thing: ModelPublic | ModelInstancePublic | WorkerPublic
    #: What an update changed: ``[old, new]`` by field.
    changed: dict[str, Any]


class Events:
    """Happenings in order, from the moment at which this was asked for. An asynchronous iterator for one reader.

    It ends with the server, and at once when it is closed. Who reads slowly misses nothing; NotFound comes out of it
    only when that took so long that the server has forgotten what was next (a day, or 100 000 events).
    """

    def __init__(self, feed: Feed) -> None:
        self._subscription = feed.subscribe(frozenset(_KINDS))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Happening:
        return _happening(await anext(self._subscription))

    async def aclose(self) -> None:
        """End the iteration."""
        self._subscription.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


def _happening(event: StoredEvent) -> Happening:
    kind, model = _KINDS[event.topic]
    return Happening(
        number=event.number,
        kind=kind,
        change=_CHANGES[event.type],
        id=event.id,
        thing=model.model_validate(event.data),
        changed=event.changed_fields,
    )
