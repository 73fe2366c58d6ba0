"""The contract of gateways, as far as it is settled. Experimental, as the contract itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpustack.plugin import (
    DataPathProcess,
    Gateway,
    GatewayHost,
    LaunchPlan,
    PluginError,
    Principal,
    Route,
    RoutingDelta,
    RoutingTable,
    Target,
    TryAgain,
    UsageRecord,
    Verdict,
)
from gpustack.testing.suites.base import ExtensionSuite, error_line
from gpustack.testing.suites.checks import is_sequence, is_text, is_url

_EMPTY = RoutingTable(version=1)
_TARGET = Target(instance_id=1, host="127.0.0.1", port=40017)
_FULL = RoutingTable(
    version=2,
    routes={
        "suite": Route(name="suite", created=1_700_000_000, targets=(_TARGET,), categories=("llm",)),
        "org/model:1": Route(name="org/model:1", created=1_700_000_000),
    },
    principals={"0" * 64: Principal(user_id=1, username="suite", allowed=frozenset({"suite"}))},
)
_DELTA = RoutingDelta(
    since=1, changed=frozenset(_FULL.routes), principals_changed=frozenset(_FULL.principals)
)


class GatewaySuite(ExtensionSuite[Gateway[Any]]):
    """Holds what :class:`gpustack.plugin.Gateway` promises."""

    kind = "gateways"

    @pytest.fixture
    def host(self, tmp_path: Path) -> GatewayHost:
        """What GPUStack lends to a gateway: as to any extension, and where its own ports would be."""
        return self.lent(tmp_path)

    @classmethod
    def lent(cls, folder: Path) -> GatewayHost:
        """Return what GPUStack lends, with new folders below ``folder``."""
        host = super().lent(folder)
        return GatewayHost(
            log=host.log, data_dir=host.data_dir, bin_dir=host.bin_dir, urls=("http://gpustack.invalid",)
        )

    def test_it_is_nowhere_before_it_is_entered(self, made: Gateway[Any]) -> None:
        """``public_urls`` is empty then: nobody is sent where nothing listens."""
        urls = made.public_urls
        assert is_sequence(urls), f"public_urls is {urls!r}; give a sequence of URLs"
        assert not urls, f"public_urls is {urls!r} before the gateway is entered; it is empty then"

    def test_its_addresses_are_urls(self, made: Gateway[Any]) -> None:
        """Once entered, each is what clients put before ``/v1``: absolute, without a slash at its end."""

        async def ask(entered: Gateway[Any]) -> list[object]:
            return list(entered.public_urls)

        for url in self.used(made, ask):
            assert is_url(url), f"public_urls holds {url!r}; give URLs such as https://gpustack.example.com"
            assert not str(url).endswith("/"), f"public_urls holds {url!r}; leave the slash at its end out"

    def test_its_processes_are_plans(self, made: Gateway[Any]) -> None:
        """What GPUStack is to run for it, asked before it is entered: LaunchPlan or DataPathProcess, empty for none."""
        plans: object = self.pure(made.processes)
        assert is_sequence(plans), f"processes returned {plans!r}; return a sequence, which may be empty"
        assert isinstance(plans, Sequence)
        for plan in plans:
            assert isinstance(plan, LaunchPlan | DataPathProcess), (
                f"processes holds {plan!r}; give a LaunchPlan or a DataPathProcess"
            )
            assert isinstance(plan, DataPathProcess) or (
                plan.argv and all(is_text(word) for word in plan.argv)
            ), f"processes holds {plan!r}, which is no command line; argv is a sequence of texts"

    def test_applying_twice_is_applying_once(self, made: Gateway[Any]) -> None:
        """The same table may come again, also after a restart, with what is new since the last one and without."""
        self._apply(made, (_EMPTY, None), (_FULL, _DELTA), (_FULL, None), (_FULL, _DELTA), (_FULL, None))

    def test_an_empty_table_is_one_too(self, made: Gateway[Any]) -> None:
        """A server without models has a gateway; one that loses its last model, too."""
        gone = RoutingDelta(
            since=2, removed=frozenset(_FULL.routes), principals_removed=frozenset(_FULL.principals)
        )
        self._apply(made, (_EMPTY, None), (_FULL, _DELTA), (RoutingTable(version=3), gone))

    def test_a_delta_is_only_a_hint(self, made: Gateway[Any]) -> None:
        """The whole table counts: a delta that starts elsewhere, or names what is not there, harms nobody."""
        wrong = RoutingDelta(since=700, changed=frozenset({"nobody"}), removed=frozenset({"suite", "else"}))
        self._apply(made, (_FULL, wrong))

    def test_health_always_answers(self, made: Gateway[Any]) -> None:
        """Before it is entered, while it is, and after: a Verdict, whose no has a reason, and never an error."""

        async def ask() -> list[tuple[str, object]]:
            answers = [("before it is entered", await self._health(made))]
            async with made:
                answers.append(("with no table", await self._health(made)))
                await self._applied(made, _FULL, None)
                answers.append(("with a table", await self._health(made)))
            return [*answers, ("after it is left", await self._health(made))]

        for when, verdict in asyncio.run(ask()):
            self.verdict(verdict, f"health {when}")

    def test_usage_is_records(self, made: Gateway[Any]) -> None:
        """They come in batches; each has an id, by which a record that comes twice counts once. The stream ends."""

        async def ask(entered: Gateway[Any]) -> list[object]:
            async def drain() -> list[object]:
                return [each async for each in entered.usage()]

            await self._applied(entered, _FULL, None)
            return [*await self.awaited("usage", drain()), *await self.awaited("usage", drain())]

        batches = self.used(made, ask)
        for batch in batches:
            assert is_sequence(batch), f"usage yields {batch!r}; yield batches, sequences of UsageRecord"
        for record in (each for batch in batches if isinstance(batch, Sequence) for each in batch):
            assert isinstance(record, UsageRecord), f"usage yields {record!r}, no UsageRecord"
            assert is_text(record.id), f"usage yields {record!r}, which has no id"

    async def _health(self, made: Gateway[Any]) -> Verdict:
        try:
            return await self.awaited("health", made.health(), seconds=10)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            pytest.fail(
                f"health raised {error_line(error)}; it never raises: return Verdict.no('the reason')"
            )

    def _apply(self, made: Gateway[Any], *tables: tuple[RoutingTable, RoutingDelta | None]) -> None:
        async def apply(entered: Gateway[Any]) -> None:
            for table, delta in tables:
                await self._applied(entered, table, delta)

        self.used(made, apply)

    async def _applied(self, gateway: Gateway[Any], table: RoutingTable, delta: RoutingDelta | None) -> None:
        try:
            answer: object = await self.awaited("apply", gateway.apply(table, delta))
        except TryAgain as error:
            self.waits(error, "apply")
        except PluginError as error:
            pytest.fail(f"apply raised {error_line(error)}; raise TryAgain while it cannot be applied")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            pytest.fail(f"apply raised {error_line(error)}; raise TryAgain while it cannot be applied")
        assert answer is None, f"apply returned {answer!r}, and nobody reads it"
