"""The ports that engines listen on: each checked to be free, held until its engine starts, given back after."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpustack.kit.errors import Unavailable
from gpustack.kit.net import LOOPBACK, hold

#: Seconds after which another attempt may find a port that an engine gave back.
_RETRY = 10.0
_SHOWN = 6


@dataclass(slots=True)
class Lease:
    """One port with its owner. :meth:`let_go` right before the engine starts, :meth:`free` after its end."""

    port: int
    owner: str
    _pool: PortPool = field(repr=False)
    _held: socket.socket | None = field(default=None, repr=False)

    def let_go(self) -> None:
        """Close the socket that held the port, so that the engine can open it; the lease goes on."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def listening(self) -> socket.socket:
        """Return a socket of its own, to be closed by the caller, that listens on the port while it is held."""
        assert self._held is not None, "only a port that is held can be listened on"
        self._held.listen(64)
        return self._held.dup()

    def free(self) -> None:
        """Give the port back; again is harmless."""
        self.let_go()
        if self._pool._leases.get(self.port) is self:
            del self._pool._leases[self.port]
            self._pool.rest(self.port)


class PortPool:
    """Hands out ports of ``ports``: first those never used, then the one whose last use is longest ago.

    Whoever routes requests learns of an engine's death a little later, and must not meet what has its port next.
    """

    def __init__(
        self, ports: Sequence[int], *, option: str = "--service-port-range", host: str = LOOPBACK
    ) -> None:
        """``host`` is the address at which ports are held: an empty one is all of this machine."""
        self._ports = ports
        self._host = host
        self._option = option
        self._leases: dict[int, Lease] = {}
        #: Ports that were used, the longest unused one first.
        self._used: dict[int, None] = {}

    def take(self, owner: str) -> Lease:
        """Return a free port, held for ``owner``.

        Raises Unavailable with one line naming the option, the range and the owners when there is none.
        """
        unused = (port for port in self._ports if port not in self._used)
        again = (port for port in list(self._used) if port in self._ports)
        for port in itertools.chain(unused, again):
            if port not in self._leases and (held := hold(port, host=self._host)) is not None:
                self.rest(port)
                lease = self._leases[port] = Lease(port, owner, self, held)
                return lease
        raise Unavailable(self._exhausted(), retry_after=_RETRY)

    def take_many(self, count: int, owner: str) -> list[Lease]:
        """Return ``count`` free ports, all held for ``owner``; when there are not so many, none. Raises Unavailable."""
        found: list[Lease] = []
        try:
            while len(found) < count:
                found.append(self.take(owner))
        except Unavailable:
            for lease in found:
                lease.free()
            raise
        return found

    def take_these(self, ports: Sequence[int], owner: str) -> list[Lease] | None:
        """Return exactly these ports, also of outside the range, held for ``owner``; None when one of them is not free."""
        found: list[Lease] = []
        for port in ports:
            if port in self._leases or (held := hold(port, host=self._host)) is None:
                for lease in found:
                    lease.free()
                return None
            self.rest(port)
            lease = self._leases[port] = Lease(port, owner, self, held)
            found.append(lease)
        return found

    def adopt(self, port: int, owner: str) -> Lease:
        """Return a lease on the port that an engine found running uses already."""
        self.rest(port)
        lease = self._leases[port] = Lease(port, owner, self)
        return lease

    def rest(self, port: int) -> None:
        """Note that ``port`` was in use until now."""
        self._used.pop(port, None)
        self._used[port] = None

    def _exhausted(self) -> str:
        ours = [f"{lease.owner} ({port})" for port, lease in sorted(self._leases.items())]
        others = len(self._ports) - len(set(self._leases) & set(self._ports))
        parts = ours[:_SHOWN]
        if len(ours) > _SHOWN:
            parts.append(f"{len(ours) - _SHOWN} more instances")
        if others:
            parts.append(f"other programs ({others} {'port' if others == 1 else 'ports'})")
        first_last = f"{self._ports[0]}-{self._ports[-1]}" if len(self._ports) else "it is empty"
        return (
            f"no free port in {self._option} ({first_last}): held by {', '.join(parts) or 'nobody'}; "
            f"widen {self._option} or remove instances"
        )
