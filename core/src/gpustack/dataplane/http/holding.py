"""How many bytes of bodies are held, and for whom: whoever has shown nothing yet takes no room from those who have."""

from __future__ import annotations

import ipaddress

from gpustack.dataplane.http.limits import Limits
from gpustack.dataplane.http.request import Request

#: Bits of an IPv6 address that are one customer's: the others are free to choose.
_NETWORK = 64


class Bodies:
    """The bytes of bodies that one server holds, of the known and of strangers, each with bounds of their own.

    A known owner has a part of the whole at most, and large bodies leave some to small ones. Strangers' bytes are not
    part of the whole: they have a small room beside it, and each address a part of that.
    """

    __slots__ = ("_large", "_limits", "_owned", "_owner", "_peers", "_small", "_whole", "held", "strangers")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._whole = limits.all_bodies_bytes
        self._large = int(limits.all_bodies_bytes * (1.0 - limits.reserved_share))
        self._owner = int(limits.all_bodies_bytes * limits.owner_share)
        self._small = limits.small_body_bytes
        #: By owner, and by network.
        self._owned: dict[int, int] = {}
        self._peers: dict[str, int] = {}
        #: Bytes of the known, and of strangers.
        self.held = self.strangers = 0

    @property
    def total(self) -> int:
        """All bytes that are held."""
        return self.held + self.strangers

    def has_room(self, request: Request, size: int) -> bool:
        """Tell whether ``size`` more bytes of the body of ``request`` could be held now."""
        plan = request.plan
        if plan is not None and plan.stranger:
            limits = self._limits
            return (
                self.strangers + size <= limits.stranger_bodies_bytes
                and self._peers.get(_network(request.peer), 0) + size <= limits.peer_bodies_bytes
            )
        small = (request.length or 0) <= self._small and request.size + size <= self._small
        if self.held + size > (self._whole if small else self._large):
            return False
        owner = request.owner
        return owner is None or self._owned.get(owner, 0) + size <= self._owner

    def take(self, request: Request, size: int) -> bool:
        """Count ``size`` more bytes of the body of ``request``; without room for them count nothing, and return False."""
        plan, owner = request.plan, request.owner
        if plan is not None and plan.stranger:
            if not self.has_room(request, size):
                return False
            self.strangers += size
            network = _network(request.peer)
            self._peers[network] = self._peers.get(network, 0) + size
            request.size += size
            return True
        # The same as has_room, in one frame: each request comes here.
        held, whole = self.held + size, request.size + size
        small = whole <= self._small and (request.length or 0) <= self._small
        if held > (self._whole if small else self._large):
            return False
        if owner is not None:
            owned = self._owned.get(owner, 0) + size
            if owned > self._owner:
                return False
            self._owned[owner] = owned
        self.held = held
        request.size = whole
        return True

    def give_back(self, request: Request) -> None:
        """The body of ``request`` is held no longer."""
        size = request.size
        if not size:
            return
        request.size = 0
        plan, owner = request.plan, request.owner
        if plan is not None and plan.stranger:
            self.strangers -= size
            _less(self._peers, _network(request.peer), size)
            return
        self.held -= size
        if owner is not None:
            owned = self._owned
            if left := owned[owner] - size:
                owned[owner] = left
            else:
                del owned[owner]


def _less(counts: dict[str, int], key: str, size: int) -> None:
    left = counts[key] - size
    if left:
        counts[key] = left
    else:
        del counts[key]


def _network(peer: str) -> str:
    """Return what stands for all addresses that the owner of ``peer`` may choose from."""
    if ":" not in peer:
        return peer
    try:
        address = ipaddress.IPv6Address(peer)
    except ValueError:
        return peer
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> _NETWORK << _NETWORK, _NETWORK)))
