"""Routes to several models, each of which has slots of its own."""

from __future__ import annotations

from gpustack.dataplane.admission import Ticket
from gpustack.dataplane.choosing import Chooser, Hints, Lease
from gpustack.plugin.routing import Route


def pick_of_several(
    chooser: Chooser, route: Route, hints: Hints, tried: tuple[int, ...], ticket: Ticket
) -> Lease | None:
    """Choose where the turn has room, and anywhere where that has been tried; the turn counts there from now on."""
    lease = None
    if others := ticket.not_first():
        lease = chooser.pick(route, hints, (*tried, *others))
    if lease is None:
        lease = chooser.pick(route, hints, tried)
    if lease is not None:
        ticket.at(lease.target.model or route.name)
    return lease
