"""Turns, queues, wake-ups and who is sent away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.dataplane.admission.fair import FairQueue
from gpustack.plugin.routing import Principal, Route, RoutingTable

People = Callable[..., Principal]


def test_as_many_go_on_as_there_are_slots_and_the_next_when_one_ends(gate: Any, a_principal: People) -> None:
    gate.serve(slots=2, count=2)
    asked = [gate.ask(a_principal()) for _ in range(6)]

    assert [each.told for each in asked] == ["goes on"] * 4 + ["waits"] * 2
    assert gate.admission.waiting("m") == (2, 20)
    gate.time.pass_by(3)
    asked[0].ticket.done(7)
    asked[0].ticket.done(7)
    assert [each.told for each in asked[4:]] == ["goes on", "waits"]
    assert asked[4].waited == 3
    assert gate.admission.running("m") == 4


def test_nothing_waits_where_slots_are_unknown(gate: Any, a_principal: People) -> None:
    gate.serve(slots=None)

    assert {gate.ask(a_principal()).told for _ in range(500)} == {"goes on"}


def test_a_route_without_targets_says_why(gate: Any, a_principal: People) -> None:
    gate.change(Route(name="m", created=0, obstacle="is loading its weights"))

    asked = gate.ask(a_principal())

    assert asked.told == "503 none_running"
    assert "model m is loading its weights" in asked.refusal.message
    assert dict(asked.refusal.error().headers())[b"retry-after"] == b"5"


def test_a_client_that_leaves_makes_room(gate: Any, a_principal: People) -> None:
    gate.serve(queue_tokens=25)
    first, second, third = (gate.ask(a_principal(), 10) for _ in range(3))

    assert gate.ask(a_principal(), 10).told == "503 queue_full"
    second.ticket.cancel()
    second.ticket.cancel()
    second.ticket.done()
    fourth = gate.ask(a_principal(), 10)
    first.ticket.cancel()
    assert [each.told for each in (second, third, fourth)] == ["waits", "goes on", "waits"]
    assert gate.admission.waiting("m") == (1, 10)


def test_a_refusal_says_which_bound_is_reached(gate: Any, a_principal: People) -> None:
    gate.serve(queue_requests=1)
    gate.serve("hasty", queue_requests=0)
    for name in ("m", "hasty"):
        gate.ask(a_principal(), route=name)
    gate.ask(a_principal())
    said = [gate.ask(a_principal(), route=name).refusal.message for name in ("m", "hasty")]
    assert said == [
        "model m has 1 request waiting, which is all its queue takes",
        "model hasty is busy, and nothing may wait for it",
    ]


def test_the_bound_is_for_each_instance_and_one_request_alone_always_may_wait(
    gate: Any, a_principal: People
) -> None:
    gate.serve(count=2, queue_tokens=100)
    running = [gate.ask(a_principal()) for _ in range(2)]

    large = gate.ask(a_principal(), 5000)
    assert large.told == "waits"
    refused = gate.ask(a_principal(), 1)
    assert refused.told == "503 queue_full"
    assert refused.refusal.retry_after >= 1
    assert refused.refusal.message == (
        "model m has 1 request of about 5000 tokens waiting; its queue takes 200 tokens, and this one is of about 1"
    )
    running[0].ticket.done()
    assert large.told == "goes on"


def test_waiting_has_a_limit(gate: Any, a_principal: People) -> None:
    gate.serve()
    gate.ask(a_principal())
    early = gate.ask(a_principal())
    gate.time.pass_by(30)
    late = gate.ask(a_principal())
    gate.time.pass_by(30)

    assert (early.told, late.told) == ("503 queue_timeout", "waits")
    gate.time.pass_by(30)
    assert late.told == "503 queue_timeout"
    assert gate.admission.waiting("m") == (0, 0)
    assert gate.time.set == 0


def test_a_sleeping_model_is_woken_once_and_who_waits_goes_on_when_it_runs(
    gate: Any, a_principal: People
) -> None:
    gate.change(Route(name="m", created=0, asleep=True, obstacle="is asleep"))
    asked = [gate.ask(a_principal()) for _ in range(3)]

    assert {each.told for each in asked} == {"waits"}
    assert gate.woken == ["m"]
    gate.time.pass_by(400)
    gate.serve(slots=2)
    assert [each.told for each in asked] == ["goes on", "goes on", "waits"]
    assert asked[0].waited == 400


def test_a_lost_wake_up_is_sent_again_for_a_later_request(gate: Any, a_principal: People) -> None:
    gate.change(Route(name="m", created=0, asleep=True))
    for _ in range(3):
        gate.ask(a_principal())
        gate.time.pass_by(40)

    assert gate.woken == ["m", "m"]


def test_a_model_that_does_not_start_is_said_in_words(gate: Any, a_principal: People) -> None:
    gate.change(Route(name="m", created=0, asleep=True, obstacle="is asleep"))
    first = gate.ask(a_principal())
    gate.time.pass_by(500)
    second = gate.ask(a_principal())
    gate.time.pass_by(100)

    assert first.told == "503 asleep"
    assert "did not start within 600 s" in first.refusal.message
    gate.change(Route(name="m", created=0, obstacle="cannot be loaded: the disk is full"))
    assert second.told == "503 none_running"
    assert "the disk is full" in second.refusal.message


def test_more_capacity_and_new_tables_let_go_on_at_once(gate: Any, a_principal: People) -> None:
    gate.serve()
    asked = [gate.ask(a_principal()) for _ in range(5)]

    gate.serve(slots=2)
    assert [each.told for each in asked].count("goes on") == 2
    gate.admission.capacity("m", 3)
    assert [each.told for each in asked].count("goes on") == 3
    gate.admission.capacity("m", None)
    asked[0].ticket.done()
    assert [each.told for each in asked].count("goes on") == 3
    gate.serve(slots=None)
    assert {each.told for each in asked} == {"goes on"}


def test_a_request_with_a_newer_route_than_the_table_s_lets_go_on_who_waits(
    gate: Any, a_principal: People
) -> None:
    gate.serve()
    asked = [gate.ask(a_principal()) for _ in range(3)]
    larger = Route(name="m", created=0, targets=gate.routes["m"].targets * 2)
    gate.routes["m"] = larger
    asked.append(gate.ask(a_principal()))

    assert [each.told for each in asked] == ["goes on", "goes on", "waits", "waits"]
    assert gate.admission.survey() == [("m", 2, 2, 20)]


def test_a_route_that_goes_refuses_who_waits_and_lets_end_who_runs(gate: Any, a_principal: People) -> None:
    gate.serve()
    runs, waits = gate.ask(a_principal()), gate.ask(a_principal())
    gate.admission.apply(RoutingTable())

    assert waits.told == "503 none_running"
    runs.ticket.done()
    gate.admission.apply(RoutingTable())
    assert gate.admission.running("m") == 0


def test_turns_are_shared_by_tokens_between_those_who_ask(gate: Any, a_principal: People) -> None:
    gate.serve()
    running = gate.ask(a_principal("first"))
    waiting = [gate.ask(a_principal("greedy"), 1000, name=f"g{n}") for n in range(4)]
    waiting += [gate.ask(a_principal("modest"), 100, name=f"m{n}") for n in range(4)]
    gate.order.clear()
    by_name = {each.name: each for each in waiting}
    running.ticket.done()
    for _ in range(7):
        by_name[gate.order[-1]].ticket.done()

    assert gate.order == ["g0", "m0", "m1", "m2", "m3", "g1", "g2", "g3"]


def test_what_was_really_taken_counts_for_the_next_turn(gate: Any, a_principal: People) -> None:
    gate.serve()
    running = gate.ask(a_principal("x"))
    asked = {f"{who}{n}": gate.ask(a_principal(who), 10, name=f"{who}{n}") for n in range(3) for who in "ab"}
    gate.order.clear()
    running.ticket.done()
    while len(gate.order) < 6:
        last = gate.order[-1]
        asked[last].ticket.done(100 if last.startswith("a") else 10)

    assert gate.order == ["a0", "b0", "b1", "b2", "a1", "a2"]


def test_higher_priorities_go_first_but_not_for_ever(gate: Any, a_principal: People) -> None:
    gate.serve()
    running = gate.ask(a_principal("x"))
    asked = {"low": gate.ask(a_principal("low"), name="low")}
    for n in range(12):
        asked[f"h{n}"] = gate.ask(a_principal("high", priority=5), name=f"h{n}")
    gate.order.clear()
    running.ticket.done()
    while len(gate.order) < 13:
        asked[gate.order[-1]].ticket.done()

    assert gate.order[8] == "low"
    assert gate.order[:8] + gate.order[9:] == [f"h{n}" for n in range(12)]


def test_what_fails_when_its_turn_comes_leaves_its_turn_to_the_next(
    gate: Any, a_principal: People, caplog: pytest.LogCaptureFixture
) -> None:
    route = gate.serve()
    running = gate.ask(a_principal())

    def fail(waited: float) -> None:
        raise ZeroDivisionError

    gate.admission.ask(a_principal(), route, 5, fail, fail)
    last = gate.ask(a_principal())
    running.ticket.done()

    assert last.told == "goes on"
    assert "a request that had waited failed" in caplog.text


def test_many_short_turns_do_not_nest(gate: Any, a_principal: People) -> None:
    route = gate.serve()
    running = gate.ask(a_principal())
    ended = []
    for n in range(5000):
        tickets: list[Any] = []

        def at_once(waited: float, tickets: list[Any] = tickets, n: int = n) -> None:
            ended.append(n)
            tickets[0].done(1)

        tickets.append(gate.admission.ask(a_principal(), route, 1, at_once, ended.append))
    running.ticket.done()

    assert ended == list(range(5000))


class _Item:
    def __init__(self, flow: int, tokens: int) -> None:
        self.flow, self.tokens, self.gone = flow, tokens, False


@given(
    st.lists(st.tuples(st.integers(1, 400), st.lists(st.integers(1, 500), min_size=60, max_size=60)), min_size=2, max_size=4)
)  # fmt: skip
@settings(max_examples=30)
def test_flows_that_wait_all_the_time_get_tokens_by_their_weights(flows: list[tuple[int, list[int]]]) -> None:
    queue: FairQueue[_Item] = FairQueue()
    weights = [weight for weight, _ in flows]
    for n, (weight, requests) in enumerate(flows):
        for tokens in requests:
            queue.add(n, _Item(n, tokens), weight=weight)
    left = [60] * len(flows)
    got = [0.0] * len(flows)
    while all(left):
        item = queue.pop()
        assert item is not None
        left[item.flow] -= 1
        got[item.flow] += item.tokens / weights[item.flow]
        for i, a in enumerate(got):
            for j, b in enumerate(got):
                assert abs(a - b) <= 500 / weights[i] + 500 / weights[j] + 1e-6


@settings(max_examples=60)
@given(
    st.integers(1, 3),
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.sampled_from("abc"), st.integers(1, 50)),
            st.tuples(st.sampled_from(["done", "cancel"]), st.integers(0, 60), st.integers(0, 90)),
            st.tuples(st.just("slots"), st.integers(0, 4), st.just(0)),
            st.tuples(st.just("time"), st.integers(1, 40), st.just(0)),
            st.tuples(st.sampled_from(["gone", "asleep"]), st.just(0), st.just(0)),
        ),
        max_size=60,
    ),
)
def test_whatever_happens_slots_are_kept_and_nobody_is_forgotten(
    slots: int, steps: list[tuple[str, Any, int]]
) -> None:
    from .conftest import Gate, Time, a_principal

    gate = Gate(Time(), longest_wait=60, longest_start=90)
    gate.serve(slots=slots, queue_tokens=200)
    asked: list[Any] = []
    cancelled: set[int] = set()
    running: set[int] = set()
    capacity = slots
    for what, first, second in steps:
        if what == "ask":
            asked.append(
                gate.ask(a_principal(first, priority=ord(first) % 2, weight=50, concurrency=40), second)
            )
        elif what in ("done", "cancel") and first < len(asked):
            ticket = asked[first].ticket
            if asked[first].told == "waits":
                cancelled.add(first)
            ticket.done(second) if what == "done" else ticket.cancel()
            cancelled |= {first} if asked[first].told == "goes on" else set()
        elif what == "slots":
            capacity = first
            gate.serve(slots=first, queue_tokens=200)
        elif what == "time":
            gate.time.pass_by(first)
        elif what in ("gone", "asleep"):
            capacity = 0
            gate.change(Route(name="m", created=0, asleep=what == "asleep"))
        running = {n for n, each in enumerate(asked) if each.told == "goes on" and n not in cancelled}
        waits = [each for n, each in enumerate(asked) if each.told == "waits" and n not in cancelled]
        assert gate.admission.running("m") == len(running)
        assert gate.admission.waiting("m") == (len(waits), sum(each.ticket.tokens for each in waits))
        assert not waits or len(running) >= capacity
    gate.serve(slots=None)
    for n, each in enumerate(asked):
        assert n in cancelled or each.told != "waits"
        each.ticket.done()
    assert gate.admission.running("m") == 0
    assert gate.admission.waiting("m") == (0, 0)
    gate.time.pass_by(100)
    assert gate.time.set == 0
    # Nothing counts as running any more.
    for name in "abc":
        for _ in range(40):
            assert gate.ask(a_principal(name, concurrency=40)).told == "goes on"
