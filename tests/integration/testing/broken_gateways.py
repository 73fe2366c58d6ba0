"""Gateways that serve requests wrongly, each in one way; ``caught_by`` is the test of the suite that is to say so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gpustack.plugin import LaunchPlan, Principal
from gpustack.testing import GatewayTrafficSuite

sys.path.insert(0, str(Path(__file__).parent))
from small_gateway import SmallGateway, Turned


def gateway(test: str, **members: Any) -> type[GatewayTrafficSuite]:
    cls = type("Broken", (SmallGateway,), members)
    about = {"extension": cls, "caught_by": test, "usage_within": 4.0, "__module__": __name__}
    return type("Broken", (GatewayTrafficSuite,), about)


class TestGood(GatewayTrafficSuite):
    extension = SmallGateway
    caught_by = ""


class SplicedSettings(BaseModel):
    public: int
    inner: int


class SplicedGateway(SmallGateway):
    """Clients reach it by a program, which GPUStack runs."""

    name = "spliced"
    settings_type = SplicedSettings

    def port(self):
        return self.settings.inner

    @property
    def public_urls(self):
        return (f"http://127.0.0.1:{self.settings.public}",) if self.server else ()

    def processes(self):
        ports = (str(self.settings.public), str(self.settings.inner))
        return [LaunchPlan(argv=(sys.executable, "-c", SPLICE, *ports))]


SPLICE = """
import asyncio, sys
public, inner = map(int, sys.argv[1:])

async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()

async def splice(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", inner)
    await asyncio.gather(pump(reader, back), pump(there, writer))

async def main():
    server = await asyncio.start_server(splice, "127.0.0.1", public)
    await server.serve_forever()

asyncio.run(main())
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in socks]


class TestGoodProgram(GatewayTrafficSuite):
    extension = SplicedGateway
    given = dict(zip(("public", "inner"), free_ports(2), strict=True))
    caught_by = ""


class TestLacksAll(GatewayTrafficSuite):
    """What a gateway says that it lacks is not held; the rest is."""

    extension = SmallGateway
    lacks = dict.fromkeys(
        ("weights", "kinds", "failover", "fallback", "stream usage", "closing", "limits", "usage"),
        "it is small",
    )
    caught_by = ""


class TestLacksWhatIsNothing(GatewayTrafficSuite):
    extension = SmallGateway
    lacks = {"speed": "it is small"}
    caught_by = "test_only_a_known_key_is_answered"


# Keys ---------------------------------------------------------------------------------------------------------


def anybody(self, headers):
    return SmallGateway.principal(self, headers) or Principal(user_id=None, username="anybody")


def any_scheme(self, headers):
    key = headers.get("Authorization", "").rpartition(" ")[2] or headers.get("X-API-Key", "")
    return self.table.principal(key, now=self.now())


def bearer_only(self, headers):
    return self.table.principal(headers.get("Authorization", "")[7:], now=self.now())


def waits_with_the_refusal(self, headers):
    """The engine is asked before the key is looked at."""
    return SmallGateway.principal(self, headers) or Principal(user_id=None, username="?", key_id=-1)


def refuses_late(self, work):
    answer = SmallGateway.ask(self, work)
    if work.who.key_id == -1:
        raise Turned(401, "no valid key")
    return answer


TestAnswersAnybody = gateway("test_only_a_known_key_is_answered", principal=anybody)
TestAnyScheme = gateway("test_only_a_known_key_is_answered", principal=any_scheme)
TestBearerOnly = gateway("test_only_a_known_key_is_answered", principal=bearer_only)
TestRefusesLate = gateway(
    "test_only_a_known_key_is_answered", principal=waits_with_the_refusal, ask=refuses_late
)
TestSendsKeysOn = gateway(
    "test_no_key_of_a_client_reaches_an_engine",
    engine_headers=lambda self, work: {"Authorization": work.headers["authorization"]},
)
TestSendsOtherKeysOn = gateway(
    "test_no_key_of_a_client_reaches_an_engine",
    engine_headers=lambda self, work: {"X-API-Key": work.headers["x-api-key"]},
)
TestNoTimeGoesBy = gateway("test_an_expired_key_is_refused", now=lambda self: 0.0)
TestForgetsWhoMay = gateway("test_a_key_asks_only_the_models_it_may", may=lambda self, who, route: True)
TestListsAll = gateway(
    "test_a_key_asks_only_the_models_it_may", models=lambda self, who: [*self.table.routes]
)
TestListsNothing = gateway("test_a_key_asks_only_the_models_it_may", models=lambda self, who: [])


# Models -------------------------------------------------------------------------------------------------------


def first_route(self, who, name):
    return next(iter(self.table.routes.values()))


def not_known_is_busy(self, who, name):
    if name not in self.table.routes:
        raise Turned(503, "come later")
    return SmallGateway.route(self, who, name)


async def keeps_what_it_knows(self, table, delta):
    self.table = replace(table, routes={**table.routes, **self.table.routes})


async def forgets_what_changes(self, table, delta):
    """Only what is new is taken; what is gone goes."""
    new = {name: self.table.routes.get(name, route) for name, route in table.routes.items()}
    self.table = replace(table, routes=new)


def written_again(self, work, target):
    return json.dumps({**work.document, "model": target.served_name or work.document["model"]}).encode()


def replaces_all(self, work, target):
    name = work.document["model"]
    return work.body.replace(f'"{name}"'.encode(), f'"{target.served_name or name}"'.encode())


def keeps_aliases(self, work, target):
    return SmallGateway.sent(self, work, replace(target, served_name=""))


def nobody_is_not_found(self, work):
    if not work.route.targets:
        raise Turned(404, "there is no such model")
    return SmallGateway.ask(self, work)


TestOneForAll = gateway("test_requests_go_where_their_model_is", route=first_route)
TestUnknownIsBusy = gateway("test_requests_go_where_their_model_is", route=not_known_is_busy)
TestNobodyIsNotFound = gateway("test_requests_go_where_their_model_is", ask=nobody_is_not_found)
TestKeepsRoutes = gateway("test_a_new_table_takes_the_place_of_the_former", apply=keeps_what_it_knows)
TestKeepsTargets = gateway("test_a_new_table_takes_the_place_of_the_former", apply=forgets_what_changes)
TestNoWeights = gateway(
    "test_weights_share_the_requests",
    order=lambda self, targets: self.chance.sample(list(targets), len(targets)),
)
TestHeaviestOnly = gateway(
    "test_weights_share_the_requests", order=lambda self, targets: sorted(targets, key=lambda t: -t.weight)
)
TestSuitsAll = gateway("test_a_model_is_asked_only_for_what_it_is", suits=lambda self, route, path: True)
TestChatsOnly = gateway(
    "test_a_model_is_asked_only_for_what_it_is", suits=lambda self, route, path: "chat" in path
)
TestWritesAgain = gateway("test_the_engine_gets_its_own_name_and_the_rest_as_it_was", sent=written_again)
TestReplacesAll = gateway("test_the_engine_gets_its_own_name_and_the_rest_as_it_was", sent=replaces_all)
TestKeepsAliases = gateway("test_the_engine_gets_its_own_name_and_the_rest_as_it_was", sent=keeps_aliases)


# Engines that fail --------------------------------------------------------------------------------------------


def one_try(self, route):
    yield from ((route, each) for each in self.order(route.targets)[:1])


def all_is_bad(self, work):
    answer = SmallGateway.ask(self, work)
    if answer.status >= 400:
        raise Turned(502, "the engine answered with an error")
    return answer


def says_little(self, work):
    answer = SmallGateway.ask(self, work)
    if answer.status >= 400:
        raise Turned(answer.status, "an error")
    return answer


def no_fallback(self, route):
    yield from ((route, each) for each in self.order(route.targets))


TestOneTry = gateway("test_a_dead_instance_costs_nobody_an_answer", tries=one_try)
TestNoFallback = gateway("test_another_model_answers_where_nobody_can", tries=no_fallback)
TestAllIsBad = gateway("test_an_engines_refusal_is_the_clients_to_see", ask=all_is_bad)
TestSaysLittle = gateway("test_an_engines_refusal_is_the_clients_to_see", ask=says_little)
TestLooksWhole = gateway(
    "test_a_stream_that_breaks_does_not_look_whole", broken=lambda self: b"data: [DONE]\n\n"
)
TestEndsInSilence = gateway("test_a_stream_that_breaks_does_not_look_whole", broken=lambda self: b"\n")


# Streams ------------------------------------------------------------------------------------------------------


def all_at_once(self, work, answer):
    yield from list(SmallGateway.lines(self, work, answer))


def usage_unasked(self, work, target):
    return SmallGateway.sent(self, replace(work, document={**work.document, "stream": False}), target)


def no_end(self, work, answer):
    yield from (line for line in SmallGateway.lines(self, work, answer) if b"[DONE]" not in line)


TestAllAtOnce = gateway("test_pieces_arrive_as_they_are_sent", lines=all_at_once)
TestUsageUnasked = gateway("test_a_streams_usage_is_asked_for_and_not_shown", sent=usage_unasked)
TestUsageShown = gateway("test_a_streams_usage_is_asked_for_and_not_shown", hides=lambda self, work: False)
TestUsageHidden = gateway("test_a_streams_usage_is_asked_for_and_not_shown", hides=lambda self, work: True)
TestNoEnd = gateway(
    "test_a_streams_usage_is_asked_for_and_not_shown", lines=no_end, broken=lambda self: b"\n"
)


# Changes ------------------------------------------------------------------------------------------------------


async def in_a_while(self, table, delta):
    await asyncio.sleep(1.5)
    await SmallGateway.apply(self, table, delta)


async def only_adds(self, table, delta):
    self.table = replace(table, principals={**self.table.principals, **table.principals})


def closes_all(self, delta):
    if delta.closed:
        SmallGateway.close(self, replace(delta, closed=frozenset(each.who.key_id for each in self.open)))


TestInAWhile = gateway("test_a_key_counts_and_counts_no_longer_within_a_second", apply=in_a_while)
TestOnlyAdds = gateway("test_a_key_counts_and_counts_no_longer_within_a_second", apply=only_adds)
TestClosesNothing = gateway(
    "test_what_a_key_has_begun_ends_with_it_if_that_is_asked", close=lambda self, delta: None
)
TestClosesAll = gateway("test_what_a_key_has_begun_ends_with_it_if_that_is_asked", close=closes_all)


# Limits -------------------------------------------------------------------------------------------------------


def without_concurrency(self, who):
    SmallGateway.admit(self, replace(who, limits=replace(who.limits, concurrency=None)))


def one_for_all(self, who):
    """All keys share the figures of one."""
    self.asked[None] += 1
    if self.asked[None] > 4:
        raise self.too_many(60)


def never_free(self, who):
    SmallGateway.admit(self, who)
    self.running[who.key_id] += who.limits.concurrency is not None


TestNoLimits = gateway("test_too_many_requests_are_told_when_to_come_again", admit=lambda self, who: None)
TestNoRetryAfter = gateway(
    "test_too_many_requests_are_told_when_to_come_again",
    too_many=lambda self, seconds: Turned(429, "too many"),
)
TestRetryAfterInWords = gateway(
    "test_too_many_requests_are_told_when_to_come_again",
    too_many=lambda self, seconds: Turned(429, "too many", **{"Retry-After": "soon"}),
)
TestOneLimitForAll = gateway("test_too_many_requests_are_told_when_to_come_again", admit=one_for_all)
TestNoConcurrency = gateway("test_requests_at_the_same_time_are_limited", admit=without_concurrency)
TestNeverFree = gateway("test_requests_at_the_same_time_are_limited", admit=never_free)


# Usage --------------------------------------------------------------------------------------------------------


def twice(self, work):
    self.metered += [self.record(work), self.record(work)]


def other(**fields: Any) -> Any:
    return lambda self, work: replace(SmallGateway.record(self, work), **fields)


def forgets_who_left(self, work):
    if work.status != 499:
        SmallGateway.meter(self, work)


TestMetersNothing = gateway("test_usage_is_told_to_the_token", meter=lambda self, work: None)
TestMetersTwice = gateway("test_usage_is_told_to_the_token", meter=twice)
TestMetersOneMore = gateway("test_usage_is_told_to_the_token", record=other(completion_tokens=6))
TestMetersNobody = gateway("test_usage_is_told_to_the_token", record=other(key_id=None))
TestMetersNoInstance = gateway("test_usage_is_told_to_the_token", record=other(instance_id=None))
TestMetersNoOperation = gateway("test_usage_is_told_to_the_token", record=other(operation=""))
TestMetersInMilliseconds = gateway("test_usage_is_told_to_the_token", record=other(at=1.7e12))
TestMetersOtherStatus = gateway("test_usage_is_told_to_the_token", record=other(status=201))
TestForgetsWhoLeft = gateway("test_what_a_client_leaves_is_told_too", meter=forgets_who_left)
TestLeavingIsFine = gateway("test_what_a_client_leaves_is_told_too", record=other(status=200))
