"""Slots and queues are a model's, whatever routes its requests come by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from unit.dataplane.admission.conftest import Gate, Time, a_principal

from gpustack.dataplane.admission import Buckets
from gpustack.plugin.routing import Principal, Route, Target

People = Callable[..., Principal]


def a_route(
    name: str, *models: str, slots: int | None = 1, weights: dict[str, int] | None = None, **more: Any
) -> Route:
    targets = tuple(
        Target(
            instance_id=sum(model.encode()), host="h", port=1, model=model, slots=slots,
            weight=(weights or {}).get(model, 100),
        )
        for model in models
    )  # fmt: skip
    return Route(name=name, created=0, targets=targets, **more)


def test_two_routes_to_a_model_share_its_slots(gate: Gate) -> None:
    for name in ("chat", "r2"):
        gate.change(a_route(name, "chat"))
    first = gate.ask(a_principal(), route="chat")
    second, third = gate.ask(a_principal(), route="r2"), gate.ask(a_principal(), route="chat")
    assert [each.told for each in (first, second, third)] == ["goes on", "waits", "waits"]
    first.ticket.done()
    assert [second.told, third.told] == ["goes on", "waits"]
    second.ticket.done()
    assert third.told == "goes on"
    assert gate.admission.load() == {"chat": (1, 0, 2), "r2": (0, 0, 1)}


def test_the_usual_way_in_counts_them_together_too(gate: Gate) -> None:
    routes = [gate.change(a_route(name, "chat", slots=2)) for name in ("chat", "r2")]
    for name in ("chat", "r2"):
        gate.ask(a_principal(), route=name).ticket.done()
    rooms = [gate.admission.room(route) for route in routes]
    tickets = [gate.admission.enter(a_principal(), room, 1) for room in (*rooms, *rooms)]
    assert [ticket is not None for ticket in tickets] == [True, True, False, False]
    assert tickets[0] is not None
    tickets[0].done()
    assert gate.admission.enter(a_principal(), rooms[1], 1) is not None
    # Who is asked for at all is not to be put to sleep, however short its requests are.
    assert {name: asked for name, (_, _, asked) in gate.admission.load().items()} == {"chat": 2, "r2": 3}


def test_their_queue_has_one_bound_and_is_fair_over_both(gate: Gate) -> None:
    for name in ("chat", "r2"):
        gate.change(a_route(name, "chat", queue_requests=5))
    runs = gate.ask(a_principal("x"), route="chat")
    asked = {f"g{n}": gate.ask(a_principal("greedy"), 100, route="r2", name=f"g{n}") for n in range(4)}
    asked["m0"] = gate.ask(a_principal("modest"), 100, route="chat", name="m0")
    assert {each.told for each in asked.values()} == {"waits"}
    assert gate.ask(a_principal(), route="chat").told == "503 queue_full"
    gate.order.clear()
    runs.ticket.done()
    for _ in range(4):
        asked[gate.order[-1]].ticket.done()
    assert gate.order.index("m0") <= 1


def test_a_model_that_is_asleep_is_waited_for_in_one_queue(gate: Gate) -> None:
    for name in ("chat", "r2"):
        gate.change(a_route(name, models=("chat",), asleep=True, queue_requests=2))
    asked = [gate.ask(a_principal(), route=name) for name in ("chat", "r2", "chat")]
    assert [each.told for each in asked] == ["waits", "waits", "503 queue_full"]
    assert set(gate.woken) == {"chat", "r2"}
    for name in ("chat", "r2"):
        gate.change(a_route(name, "chat"))
    assert [each.told for each in asked[:2]] == ["goes on", "waits"]


def test_a_route_to_several_models_counts_where_it_goes(gate: Gate) -> None:
    gate.change(a_route("old", "old"))
    gate.change(a_route("canary", "old", "new"))
    by_canary = gate.ask(a_principal(), route="canary")
    assert by_canary.ticket.not_first() == ()
    by_canary.ticket.at("old")
    waits = gate.ask(a_principal(), route="old")
    assert waits.told == "waits"
    # There is room at the other one, and only there.
    another = gate.ask(a_principal(), route="canary")
    assert another.told == "goes on"
    assert another.ticket.not_first() == (sum(b"old"),)
    another.ticket.at("new")
    third = gate.ask(a_principal(), route="canary")
    assert third.told == "waits"
    another.ticket.done()
    assert (third.told, waits.told) == ("goes on", "waits")
    assert third.ticket.not_first() == (sum(b"old"),)
    by_canary.ticket.done()
    assert waits.told == "goes on"


def test_a_request_that_is_sent_on_to_another_model_makes_room(gate: Gate) -> None:
    gate.change(a_route("old", "old"))
    gate.change(a_route("canary", "old", "new", slots=1))
    tried = gate.ask(a_principal(), route="canary")
    tried.ticket.at("old")
    waits = gate.ask(a_principal(), route="old")
    tried.ticket.at("new")
    assert waits.told == "goes on"
    assert gate.ask(a_principal(), route="canary").told == "waits"


def test_a_model_without_a_share_gets_nothing_that_another_one_can_take(gate: Gate) -> None:
    gate.change(a_route("smart", "main", "spare", weights={"spare": 0}))
    first, second = gate.ask(a_principal(), route="smart"), gate.ask(a_principal(), route="smart")
    first.ticket.at("main")
    assert first.told == "goes on"
    third = gate.ask(a_principal(), route="smart")
    assert third.told == "waits"
    gate.change(a_route("smart", "spare", weights={"spare": 0}))
    assert third.told == "goes on"
    second.ticket.cancel()


def test_who_waits_goes_where_the_route_leads_now(gate: Gate) -> None:
    gate.change(a_route("old", "old"))
    gate.change(a_route("smart", "old"))
    gate.ask(a_principal(), route="old")
    stays = gate.ask(a_principal(), route="old")
    moves = gate.ask(a_principal(), route="smart")
    gate.change(a_route("smart", "new"))
    assert (stays.told, moves.told) == ("waits", "goes on")
    assert gate.admission.waiting("smart") == (0, 0)


def test_a_route_that_goes_leaves_the_others(gate: Gate) -> None:
    for name in ("chat", "r2"):
        gate.change(a_route(name, "chat"))
    runs = gate.ask(a_principal(), route="chat")
    waits = gate.ask(a_principal(), route="r2")
    del gate.routes["chat"]
    gate.change(a_route("r2", "chat"))
    assert waits.told == "waits"
    runs.ticket.done()
    assert waits.told == "goes on"
    waits.ticket.done()
    gate.routes.clear()
    gate.change(a_route("other", "other"))
    assert not gate.admission._pools


def test_processes_count_a_models_requests_together(time: Time, tmp_path: Path) -> None:
    gates = [Gate(time, Buckets.mapped(tmp_path / "buckets", seat=seat, seats=2)) for seat in range(2)]
    for each in gates:
        for name in ("chat", "r2"):
            each.change(a_route(name, "chat"))
    first = gates[0].ask(a_principal(), route="chat")
    second = gates[1].ask(a_principal(), route="r2")
    assert (first.told, second.told) == ("goes on", "waits")
    first.ticket.done()
    time.pass_by(0.05)
    assert second.told == "goes on"


@given(st.lists(st.tuples(st.sampled_from("ab+"), st.integers(0, 9)), max_size=60))
def test_no_model_ever_has_more_than_its_slots_and_nothing_is_left(steps: list[tuple[str, int]]) -> None:
    gate = Gate(Time())
    gate.change(a_route("a", "a", slots=2))
    gate.change(a_route("b", "b", slots=2))
    gate.change(a_route("+", "a", "b", slots=2))
    asked = []
    slots = {sum(b"a"): "a", sum(b"b"): "b"}
    for route, number in steps:
        if number < 6:
            asked.append(gate.ask(a_principal(), route=route))
        elif asked:
            asked.pop(number % len(asked)).ticket.done()
        for each in asked:
            if each.told == "goes on" and each.ticket.pool is None:
                free = sorted(set(slots) - set(each.ticket.not_first()))
                each.ticket.at(slots[free[0]])
        assert all(0 <= pool.running <= 2 for pool in gate.admission._pools.values())
        waiting = [each for each in asked if each.told == "waits"]
        for each in waiting:
            assert each.ticket.pool.running == 2
    for each in asked:
        each.ticket.done()
    for each in asked:
        each.ticket.done()
    assert not any(counts for _, *numbers in gate.admission.survey() for counts in numbers)
    assert not any(pool.running or pool.waiting or pool.tokens for pool in gate.admission._pools.values())
