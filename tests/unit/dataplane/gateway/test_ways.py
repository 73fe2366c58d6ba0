"""What is known of a route for each request is that of the present table."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from gpustack.dataplane.admission import Admission
from gpustack.dataplane.choosing import Chooser
from gpustack.dataplane.gateway import Gateway, Parts
from gpustack.dataplane.http import Upstream
from gpustack.plugin.routing import Route, RoutingTable, Target


def a_route(name: str, *instances: int) -> Route:
    targets = tuple(Target(instance_id=each, host="127.0.0.1", port=each) for each in instances)
    return Route(name=name, created=1, targets=targets)


@pytest.fixture
async def gateway() -> Gateway:
    loop = asyncio.get_running_loop()
    gateway = Gateway(
        Parts(
            upstream=Upstream(),
            chooser=Chooser(time.monotonic),
            admission=Admission(loop.time, loop),
        )
    )
    gateway.apply(RoutingTable(routes={name: a_route(name, 1) for name in ("a", "b")}))
    return gateway


def instances(gateway: Gateway, name: str) -> set[int]:
    way = gateway.way(name)
    assert way is not None
    assert way.room.route is way.route is way.known.route
    return {member.target.instance_id for member in way.known.members}


async def test_a_change_concerns_the_routes_that_it_names(gateway: Gateway) -> None:
    before = {name: gateway.way(name) for name in ("a", "b")}
    assert gateway.way("a") is before["a"]
    routes = dict(gateway.table.routes) | {"a": a_route("a", 2, 3)}
    gateway.apply(replace(gateway.table, routes=routes), ["a"])

    assert instances(gateway, "a") == {2, 3}
    assert gateway.way("b") is before["b"]


async def test_what_is_gone_is_not_known_any_more(gateway: Gateway) -> None:
    assert instances(gateway, "a") == {1}
    gateway.apply(replace(gateway.table, routes={"b": gateway.table.routes["b"]}), ["a"])
    assert gateway.way("a") is None
    gateway.apply(replace(gateway.table, routes={"a": a_route("a", 4)}))
    assert instances(gateway, "a") == {4}
    assert gateway.way("b") is None


async def test_a_gateway_beside_another_goes_by_the_table_that_it_is_told(gateway: Gateway) -> None:
    other = Gateway(Parts(upstream=gateway.upstream, chooser=gateway.chooser, admission=gateway.admission))
    other.follow(gateway.table)
    assert instances(other, "a") == {1}
    gateway.apply(replace(gateway.table, routes={"a": a_route("a", 5)}), ["a", "b"])
    other.follow(gateway.table)
    assert instances(other, "a") == {5}
    assert other.way("b") is None


async def test_a_change_of_keys_alone_forgets_nothing(gateway: Gateway) -> None:
    way = gateway.way("a")
    gateway.apply(replace(gateway.table, version=2), [])
    assert gateway.way("a") is way
