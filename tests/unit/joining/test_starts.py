"""Restart or copy: which start of a worker counts when two say that they are it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.kit.errors import Conflict, GPUStackError, Unauthenticated
from gpustack.lifecycle.joining import Claim, Known, Start, admit, first

KEY, OTHER_KEY = "K" * 43, "O" * 43


def a_known(**fields: Any) -> Known:
    values = {
        "name": "box",
        "hostname": "box.lan",
        "ip": "10.0.0.2",
        "home": "home",
        "boot": "boot",
        "door_token": "door",
        "public_key": KEY,
        "session": 5,
        "start": "five",
        "earlier_start": "four",
        "refused_start": "",
        "alive": True,
        **fields,
    }
    return Known(**values)


def a_claim(**fields: Any) -> Claim:
    values = {
        "hostname": "box.lan",
        "ip": "10.0.0.2",
        "home": "home",
        "boot": "boot",
        "start": "six",
        "door_token": "door",
        "public_key": KEY,
        "by_credential": False,
        **fields,
    }
    return Claim(**values)


def kept(known: Known, start: Start) -> Known:
    return replace(
        known,
        session=start.session,
        start=start.start,
        earlier_start=start.earlier_start,
        refused_start=start.refused_start,
    )


def test_the_first_start_is_number_one() -> None:
    assert first(a_claim()) == Start(session=1, start="six")


def test_a_restart_waits_for_nothing_and_gets_the_next_number() -> None:
    assert admit(a_known(), a_claim()) == Start(session=6, start="six", earlier_start="five")


def test_a_lost_answer_makes_no_other_start() -> None:
    start = admit(a_known(), a_claim())

    assert admit(kept(a_known(), start), a_claim()) == start


@pytest.mark.parametrize("change", [{"hostname": "renamed"}, {"ip": "10.0.0.99"}, {"door_token": "another"}])
@pytest.mark.parametrize("by_credential", [True, False])
def test_another_name_or_address_is_the_same_worker(change: dict[str, str], by_credential: bool) -> None:
    assert admit(a_known(), a_claim(**change, by_credential=by_credential)).session == 6


@pytest.mark.parametrize("change", [{"home": "elsewhere"}, {"boot": "another"}])
@pytest.mark.parametrize("by_credential", [True, False])
def test_a_copy_is_told_at_once_while_the_other_lives(change: dict[str, str], by_credential: bool) -> None:
    with pytest.raises(Conflict, match=r"box is alive on box\.lan \(10\.0\.0\.2\).*copied\?"):
        admit(a_known(), a_claim(**change, by_credential=by_credential))


@pytest.mark.parametrize("change", [{"home": "elsewhere"}, {"boot": "another"}])
def test_a_machine_that_was_started_again_or_moved_is_the_same_worker(change: dict[str, str]) -> None:
    assert admit(a_known(alive=False), a_claim(**change)).session == 6


def test_a_copy_that_nothing_tells_is_told_when_the_other_one_speaks_again() -> None:
    known = a_known()
    known = kept(known, admit(known, a_claim(start="copy")))

    back = admit(known, a_claim(start="five"))

    assert back == Start(session=7, start="five", refused_start="copy", contested=True)
    known = kept(known, back)
    with pytest.raises(Conflict):
        admit(known, a_claim(start="copy"))
    assert admit(known, a_claim(start="five")).session == 7, "the one that was there is left alone"
    assert admit(replace(known, alive=False), a_claim(start="copy")).session == 8, "it has ended"


def test_a_key_that_is_not_its_own_is_no_proof() -> None:
    with pytest.raises(Conflict, match="alive"):
        admit(a_known(), a_claim(public_key=OTHER_KEY))
    with pytest.raises(Conflict, match="a key that this one does not have"):
        admit(a_known(alive=False), a_claim(public_key=""))


def test_the_own_credential_at_home_replaces_a_lost_key() -> None:
    assert admit(a_known(), a_claim(public_key=OTHER_KEY, by_credential=True)).session == 6
    with pytest.raises(Unauthenticated, match="another place"):
        admit(a_known(alive=False), a_claim(public_key="", by_credential=True, home="elsewhere"))


starts = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(starts, st.booleans()), max_size=30))
def test_of_two_that_live_one_is_in_and_stays(steps: list[tuple[str, bool]]) -> None:
    """Whatever registers in whatever order: numbers only grow, and who is refused takes nothing away."""
    known = a_known(start="", earlier_start="", session=0)
    for start, alive in steps:
        known = replace(known, alive=alive)
        try:
            admitted = admit(known, a_claim(start=start))
        except GPUStackError:
            assert alive
            assert start == known.refused_start
            continue
        assert admitted.start == start
        assert admitted.session >= known.session
        assert (admitted.session == known.session) == (start == known.start)
        assert admitted.refused_start != start
        known = kept(known, admitted)
