"""The contract of a gateway: what carries inference requests to the engines.

Experimental: it is settled by the first gateways that use it, and may change until a release says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

from gpustack.plugin.contracts import Extension, S
from gpustack.plugin.routing import RoutingDelta, RoutingTable, UsageRecord
from gpustack.plugin.values import LaunchPlan, Verdict


class Gateway(Extension[S], ABC):
    """Serves what a routing table says: each is a translation of that one value."""

    @property
    @abstractmethod
    def public_urls(self) -> Sequence[str]:
        """Return where clients reach it, without a slash at the end. Empty before it is entered."""

    def processes(self) -> Sequence[LaunchPlan]:
        """Return what GPUStack is to run for it, beside the server; none by default. Called once, after it is entered."""
        return ()

    @abstractmethod
    async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        """Serve ``table`` from now on, within a second; the former one serves until then.

        Idempotent: the same table may come again, also after a restart. ``delta`` tells what is new since the table before;
        None when that is not known. Tables come one at a time, in the order of their versions. Raises TryAgain while it
        cannot be applied, and is called again with the newest table then.
        """

    @abstractmethod
    async def health(self) -> Verdict:
        """Tell whether requests are served now; a no has a reason for the administrator. Never raises."""

    async def usage(self) -> AsyncIterator[UsageRecord]:
        """Yield what was metered since the last call, each record at least once. By default nothing is metered."""
        nothing: tuple[UsageRecord, ...] = ()
        for record in nothing:
            yield record
