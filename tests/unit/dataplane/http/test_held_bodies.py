"""Whose bodies take whose room."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.http import BodyPlan, Limits, Request
from gpustack.dataplane.http.holding import Bodies

LIMITS = Limits(
    all_bodies_bytes=1000, owner_share=0.75, reserved_share=0.2, small_body_bytes=50,
    stranger_bodies_bytes=300, peer_bodies_bytes=100,
)  # fmt: skip
KNOWN, STRANGER = BodyPlan(), BodyPlan(stranger=True)


def a_request(plan: BodyPlan = KNOWN, *, owner: int | None = None, peer: str = "192.0.2.1") -> Request:
    return Request(peer, False, plan=plan, owner=owner)


def test_strangers_take_nothing_from_the_known() -> None:
    bodies = Bodies(LIMITS)
    for number in range(3):
        assert bodies.take(a_request(STRANGER, peer=f"192.0.2.{number}"), 100)
    assert not bodies.take(a_request(STRANGER, peer="192.0.2.9"), 1)
    assert bodies.has_room(a_request(), 800)


def test_a_stranger_leaves_room_to_others() -> None:
    bodies = Bodies(LIMITS)
    assert bodies.take(a_request(STRANGER), 100)
    assert not bodies.take(a_request(STRANGER), 1)
    assert bodies.take(a_request(STRANGER, peer="192.0.2.2"), 100)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_an_address_is_its_network_where_its_owner_may_choose(one: str, other: str, same: bool) -> None:
    bodies = Bodies(LIMITS)
    assert bodies.take(a_request(STRANGER, peer=one), 100)
    assert bodies.has_room(a_request(STRANGER, peer=other), 1) is not same


def test_large_bodies_leave_room_to_small_ones() -> None:
    bodies = Bodies(LIMITS)
    for owner in range(2):
        assert bodies.take(a_request(owner=owner), 400)
    assert not bodies.take(a_request(owner=3), 51)
    for _ in range(4):
        assert bodies.take(a_request(owner=3), 50)
    assert not bodies.has_room(a_request(owner=3), 1)


def test_a_large_body_is_large_from_its_first_byte() -> None:
    bodies = Bodies(LIMITS)
    for owner in range(2):
        assert bodies.take(a_request(owner=owner), 400)
    large = a_request(owner=3)
    large.length = 60
    assert not bodies.has_room(large, 1)


def test_one_owner_has_not_everything() -> None:
    bodies = Bodies(LIMITS)
    first = a_request(owner=1)
    assert bodies.take(first, 750)
    assert not bodies.has_room(a_request(owner=1), 1)
    assert bodies.has_room(a_request(owner=2), 50)
    bodies.give_back(first)
    assert bodies.has_room(a_request(owner=1), 750)


BODY = st.tuples(st.booleans(), st.integers(0, 3), st.lists(st.integers(1, 200), max_size=4), st.booleans())


@given(st.lists(BODY, max_size=30))
def test_bounds_hold_and_all_that_is_taken_comes_back(
    asked: list[tuple[bool, int, list[int], bool]],
) -> None:
    bodies = Bodies(replace(LIMITS, all_bodies_bytes=600))
    held: list[Request] = []
    for strange, owner, pieces, leaves in asked:
        request = a_request(STRANGER if strange else KNOWN, owner=owner, peer=f"192.0.2.{owner}")
        for piece in pieces:
            bodies.take(request, piece)
        held.append(request)
        if leaves:
            bodies.give_back(held.pop(0))
        assert bodies.total == sum(each.size for each in held)
        assert bodies.held <= 600
        assert bodies.strangers <= 300
    for request in held:
        bodies.give_back(request)
    assert bodies.total == 0
    assert not bodies._owned
    assert not bodies._peers
