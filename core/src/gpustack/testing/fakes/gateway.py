"""A gateway that serves nobody and keeps the tables it was given. It stands for any gateway; for tests only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Self

from gpustack.plugin import (
    Gateway,
    GatewayHost,
    NoSettings,
    PluginError,
    RoutingDelta,
    RoutingTable,
    UsageRecord,
    Verdict,
    hookimpl,
)

#: Nobody has this name (RFC 6761).
URL = "http://fake-gateway.invalid"


class FakeGateway(Gateway[NoSettings]):
    """Keeps in ``applied`` what it was told to serve, newest last."""

    name = "fake"
    settings_type = NoSettings

    def __init__(self, settings: NoSettings, host: GatewayHost) -> None:
        super().__init__(settings, host)
        self.applied: list[tuple[RoutingTable, RoutingDelta | None]] = []
        #: Raised by ``apply`` while it is set; the table is not taken then.
        self.trouble: PluginError | None = None
        #: What ``health`` says while it is open; None follows from the rest.
        self.verdict: Verdict | None = None
        #: What ``usage`` yields, and what is taken out once it is kept.
        self.metered: list[UsageRecord] = []
        self.open = False

    async def __aenter__(self) -> Self:
        self.open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        self.open = False

    @property
    def public_urls(self) -> Sequence[str]:
        """Return an address that leads nowhere."""
        return (URL,) if self.open else ()

    @property
    def table(self) -> RoutingTable:
        """The newest table; an empty one before the first."""
        return self.applied[-1][0] if self.applied else RoutingTable()

    async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        """Keep both."""
        if self.trouble is not None:
            raise self.trouble
        self.applied.append((table, delta))

    async def health(self) -> Verdict:
        """Say yes once it is entered and has a table."""
        if not self.open:
            return Verdict.no("the fake gateway is not entered")
        if self.verdict is not None:
            return self.verdict
        return Verdict.yes() if self.applied else Verdict.no("the fake gateway has no table yet")

    async def usage(self) -> AsyncIterator[Sequence[UsageRecord]]:
        """Yield what the test put into ``metered``, until it is kept."""
        while records := tuple(self.metered):
            yield records
            del self.metered[: len(records)]


@hookimpl
def register_gateways() -> Iterable[type[Gateway[Any]]]:
    """Return the one gateway there is here."""
    return [FakeGateway]
