"""The contract of a gateway: what carries inference requests to the engines.

A gateway has three sides. :meth:`Gateway.processes` says what GPUStack is to run for it, :meth:`Gateway.apply` translates
the routing table for what runs, and :meth:`Gateway.usage` brings back what requests took. It may run programs of its own, or
GPUStack's data path (:class:`DataPathProcess`), or nothing, where something is there already.

Experimental: it is settled by the first gateways that use it, and may change until a release says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from gpustack.plugin.contracts import Extension, Host, S
from gpustack.plugin.routing import RoutingDelta, RoutingTable, UsageRecord
from gpustack.plugin.values import LaunchPlan, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPathProcess:
    """One process of GPUStack's own data path, which answers on the public ports.

    All of it is GPUStack's: it gives the process its sockets, tells it the table and every change at once, and keeps its
    usage. Such a process goes on when everything else ends, and a restart or an upgrade replaces it without refusing anybody.
    """


def _none_here() -> Verdict:
    return Verdict.no("no process of GPUStack's data path runs here")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayHost(Host):
    """What GPUStack lends to a gateway."""

    #: Where clients reach GPUStack's own ports, without a slash at the end. Empty as long as that is not known: for
    #: :meth:`Gateway.processes` above all.
    urls: tuple[str, ...] = ()
    #: Tells how the processes are that were declared as :class:`DataPathProcess`: yes while the server is connected with one
    #: at least; the reason, also of a yes, says how many are missing. Quick, from any thread.
    data_path: Callable[[], Verdict] = _none_here


class Gateway(Extension[S], ABC):
    """Serves what a routing table says: each is a translation of that one value."""

    host: GatewayHost

    def __init__(self, settings: S, host: GatewayHost) -> None:
        super().__init__(settings, host)

    @property
    @abstractmethod
    def public_urls(self) -> Sequence[str]:
        """Return where clients reach it, without a slash at the end. Empty before it is entered."""

    def processes(self) -> Sequence[LaunchPlan | DataPathProcess]:
        """Return what GPUStack is to run for it, beside the server; none by default.

        Pure, and called before the gateway is entered, whenever the settings are read: of another object than the one that
        lives in the server. A LaunchPlan is run as a program that GPUStack starts, starts again when it ends, and ends with
        the rest; what it writes goes to a file in the log directory, its ``ready`` is not asked, and its working directory is
        one of its own unless ``cwd`` names one. With a DataPathProcess among them these processes answer on ``--port``;
        with none the server does so itself, as with ``--gateway-mode disabled``, whatever the gateway does besides.
        """
        return ()

    @abstractmethod
    async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        """Serve ``table`` from now on, within a second; the former one serves until then.

        Idempotent: the same table may come again, also after a restart. ``delta`` tells what is new since the table before;
        None when that is not known. Tables come one at a time, in the order of their versions; those that came while one was
        applied come as one. Raises TryAgain while it cannot be applied, and is called again with the newest table then, and
        without a delta. The table is the gateway's to keep; nobody changes it.

        A gateway whose requests are all carried by :class:`DataPathProcess` has nothing to do here: GPUStack tells those.
        """

    @abstractmethod
    async def health(self) -> Verdict:
        """Tell whether requests are served now; a no has a reason for the administrator. Never raises."""

    async def usage(self) -> AsyncIterator[Sequence[UsageRecord]]:
        """Yield what was metered, in batches, until there is no more for now. By default nothing is metered.

        Called every few seconds. When it is asked for the next batch, the one before is written down and may be forgotten;
        when it is closed instead, that one is to come again. A record that comes twice counts once, by its id. What
        :class:`DataPathProcess` meters does not come here: GPUStack keeps that itself.
        """
        nothing: tuple[Sequence[UsageRecord], ...] = ()
        for batch in nothing:
            yield batch
