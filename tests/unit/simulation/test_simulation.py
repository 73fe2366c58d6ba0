"""Made-up time on a described fleet: the same every time, and never more than there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import GIB
from gpustack.scheduling import Holding
from gpustack.scheduling.simulation import POLICIES, WrongValue, fleet, simulate, workload

ONE_GPU = {"workers": [{"name": "w", "gpus": {"memory": "10GiB"}}]}
PLAIN = POLICIES["whole"]


def a_workload(*requests: dict[str, Any], duration: str = "1h", **more: Any) -> Any:
    return workload({"duration": duration, "requests": list(requests), **more})


def test_one_that_waits_gets_the_room_of_one_that_ends() -> None:
    wanted = a_workload(
        {"name": "first", "at": 0, "vram": "8GiB", "count": 2},
        {"name": "last", "at": "50m", "vram": "8GiB"},
    )
    held = replace(wanted.kinds[0], lasts=None)
    report = simulate(fleet(ONE_GPU), replace(wanted, kinds=(held, wanted.kinds[1])), PLAIN)
    assert (report.arrived, report.placed, report.waiting) == (3, 1, 2)

    ends = simulate(
        fleet(ONE_GPU), a_workload({"name": "a", "every": "1m", "vram": "8GiB", "lasts": "30s"}), PLAIN
    )
    assert ends.placed + ends.waiting - ends.waiting_again == ends.arrived
    assert ends.waits.longest > 0
    assert ends.at_once < ends.placed


def test_who_waits_still_or_again_counts_with_what_it_has_waited() -> None:
    never = simulate(
        fleet(ONE_GPU), a_workload({"name": "a", "at": "15m", "vram": "11GiB", "count": 10}), PLAIN
    )
    assert (never.placed, never.waiting, never.waiting_again) == (0, 10, 0)
    assert never.waits.median == never.waits.longest == 45 * 60

    twice = simulate(
        fleet(ONE_GPU),
        a_workload(
            {"name": "a", "at": 0, "vram": "8GiB"}, failures=[{"worker": "w", "at": "50m", "lasts": "1h"}]
        ),
        PLAIN,
    )
    assert (twice.placed, twice.at_once, twice.waiting, twice.waiting_again) == (1, 1, 1, 1)
    assert twice.waits.longest == twice.kinds["a"].waits.longest == 10 * 60

    back = simulate(
        fleet(ONE_GPU),
        a_workload(
            {"name": "a", "at": 0, "vram": "8GiB"}, failures=[{"worker": "w", "at": "20m", "lasts": "5m"}]
        ),
        PLAIN,
    )
    assert (back.waiting, back.waits.longest) == (0, 5 * 60)


def test_what_is_held_all_the_time_is_used_memory() -> None:
    report = simulate(fleet(ONE_GPU), a_workload({"name": "a", "at": 0, "vram": "4GiB"}), PLAIN)
    assert report.utilisation == pytest.approx(0.4)
    assert report.waits.longest == 0
    held = Holding(instance_id=7, model_id=7, worker_id=1, ram=0, vram={0: 5 * GIB})
    more = simulate(
        fleet(ONE_GPU), a_workload({"name": "a", "at": 0, "vram": "4GiB"}), PLAIN, holdings=[held]
    )
    assert more.utilisation == pytest.approx(0.9)


def test_free_memory_that_nothing_fits_into_is_fragmentation() -> None:
    wanted = a_workload({"name": "a", "at": 0, "count": 5, "vram": "6GiB"})
    report = simulate(fleet(ONE_GPU), wanted, PLAIN)
    assert report.fragmentation == pytest.approx(1.0), "4 GiB are free, and 6 are asked for"
    assert (
        simulate(fleet(ONE_GPU), a_workload({"name": "a", "at": 0, "vram": "5GiB"}), PLAIN).fragmentation == 0
    )


def test_a_failure_takes_the_place_and_gives_it_back() -> None:
    wanted = a_workload(
        {"name": "a", "at": 0, "vram": "4GiB"},
        failures=[{"worker": "w", "at": "20m", "lasts": "10m"}, {"worker": "w", "at": "25m", "lasts": "15m"}],
    )
    report = simulate(fleet(ONE_GPU), wanted, PLAIN)
    assert (report.lost, report.placed, report.waiting) == (1, 1, 0)
    late = simulate(fleet(ONE_GPU), replace(wanted, duration=30 * 60.0), PLAIN)
    assert late.waiting == 1, "the second failure lasts longer than the first"


def test_what_a_failure_interrupts_has_only_the_rest_left_to_run() -> None:
    wanted = a_workload(
        {"name": "a", "at": 0, "vram": "8GiB", "lasts": "1s"},
        {"name": "b", "at": "59m", "vram": "8GiB"},
        failures=[{"worker": "w", "at": 0, "lasts": "30m"}],
    )
    assert simulate(fleet(ONE_GPU), wanted, PLAIN).waiting == 0


def test_a_higher_priority_takes_the_place_of_a_lower_one_which_waits() -> None:
    wanted = a_workload(
        {"name": "low", "at": 0, "vram": "8GiB", "lasts": "1000d"},
        {"name": "high", "at": "10m", "vram": "8GiB", "lasts": "1s", "priority": 5},
    )
    report = simulate(fleet(ONE_GPU), wanted, PLAIN)
    assert (report.preempted, report.placed, report.waiting) == (1, 2, 0)
    held = Holding(instance_id=7, model_id=7, worker_id=1, ram=0, vram={0: 5 * GIB})
    assert simulate(fleet(ONE_GPU), wanted, PLAIN, holdings=[held]).placed == 0, "what was there stays"


def test_members_over_several_workers_need_them_all() -> None:
    two = {"workers": [{"name": "w", "count": 2, "gpus": {"memory": "10GiB", "count": 2}}]}
    wanted = a_workload({"name": "a", "at": 0, "count": 3, "workers": 2, "gpus": 1, "vram": "8GiB"})
    report = simulate(fleet(two), wanted, PLAIN)
    assert (report.placed, report.waiting) == (2, 1)
    apart = {"workers": [{**two["workers"][0], "name": each, "network": each, "count": 1} for each in "ab"]}
    assert simulate(fleet(apart), wanted, PLAIN).placed == 0


def test_members_that_differ_each_find_a_worker_that_is_large_enough() -> None:
    workers = {
        "workers": [
            {"name": "small", "gpus": {"memory": "10GiB"}},
            {"name": "large", "gpus": {"count": 2, "memory": "10GiB"}},
        ]
    }
    members = [{"gpus": 2, "vram": "9GiB"}, {"vram": "9GiB", "ram": "1GiB"}]
    report = simulate(
        fleet(workers), a_workload({"name": "a", "at": 0, "members": members, "count": 2}), PLAIN
    )
    assert (report.placed, report.waiting) == (1, 1)
    assert report.kinds["a"].impossible == ""

    members = [{"gpus": 2, "vram": "9GiB"}] * 2
    report = simulate(fleet(workers), a_workload({"name": "a", "at": 0, "members": members}), PLAIN)
    assert report.placed == 0
    assert "small: one of 2 members; needs 2 GPUs, has 1" in report.kinds["a"].impossible


def test_what_could_never_be_placed_is_told_with_the_reason() -> None:
    report = simulate(
        fleet(ONE_GPU),
        a_workload(
            {"name": "huge", "at": 0, "vram": "11GiB"},
            {"name": "first", "at": 0, "vram": "9GiB"},
            {"name": "late", "at": 1, "vram": "9GiB"},
        ),
        PLAIN,
    )
    assert report.kinds["huge"].impossible.startswith("no worker is large enough, even when empty: ")
    assert report.kinds["late"].impossible == "", "it would fit if the first one ended"


def test_links_labels_and_backends_are_heeded() -> None:
    described = {
        "workers": [
            {"name": "pairs", "gpus": {"count": 4, "memory": "10GiB", "linked": 2}, "labels": {"zone": "a"}}
        ]
    }
    (worker,) = fleet(described)
    assert [gpu.island for gpu in worker.gpus] == [0, 0, 1, 1]
    linked = {"name": "a", "at": 0, "gpus": 2, "vram": "8GiB", "linked": True}
    assert simulate(fleet(described), a_workload({**linked, "count": 3}), PLAIN).placed == 2
    assert simulate(fleet(described), a_workload({**linked, "gpus": 4}), PLAIN).placed == 0
    assert simulate(fleet(described), a_workload({**linked, "selector": {"zone": "b"}}), PLAIN).placed == 0


KINDS = st.lists(
    st.fixed_dictionaries(
        {
            "gpus": st.integers(0, 4),
            "vram": st.integers(1, 30),
            "ram": st.integers(0, 20),
            "every": st.integers(30, 900),
            "lasts": st.integers(10, 3000),
            "workers": st.integers(1, 2),
            "linked": st.booleans(),
        }
    ),
    min_size=1,
    max_size=4,
)


def made_up(kinds: list[dict[str, Any]]) -> Any:
    requests = []
    for number, each in enumerate(kinds):
        vram = {"vram": f"{each['vram']}GiB"} if each["gpus"] else {}
        requests.append(
            {
                **{key: value for key, value in each.items() if key != "vram"},
                **vram,
                "ram": f"{each['ram']}GiB",
                "name": f"k{number}",
            }
        )
    return a_workload(*requests, duration="3h", failures=[{"every": "1h", "lasts": "10m"}])


MIXED = {
    "workers": [
        {"name": "a", "count": 2, "ram": "64GiB", "gpus": {"count": 4, "memory": "24GiB", "linked": 2}},
        {"name": "b", "count": 2, "ram": "32GiB", "gpus": [{"memory": "40GiB"}, {"memory": "8GiB"}]},
    ]
}


@settings(max_examples=15, deadline=None)
@given(KINDS, st.integers(0, 1000), st.sampled_from(sorted(POLICIES)))
def test_the_same_seed_gives_the_same_and_all_adds_up(
    kinds: list[dict[str, Any]], seed: int, policy: str
) -> None:
    wanted = made_up(kinds)
    report = simulate(fleet(MIXED), wanted, POLICIES[policy], seed=seed)
    assert simulate(fleet(MIXED), wanted, POLICIES[policy], seed=seed) == report
    assert 0 <= report.utilisation <= 1
    assert 0 <= report.fragmentation <= 1
    assert report.at_once <= report.placed <= report.arrived
    assert report.arrived == report.placed + report.waiting - report.waiting_again
    assert sum(each.arrived for each in report.kinds.values()) == report.arrived
    assert report.waits.median <= report.waits.p95 <= report.waits.p99 <= report.waits.longest


def test_policies_see_the_same_arrivals_and_seeds_other_ones() -> None:
    wanted = made_up(
        [{"gpus": 1, "vram": 8, "ram": 1, "every": 60, "lasts": 600, "workers": 1, "linked": False}]
    )
    one, two = (simulate(fleet(MIXED), wanted, POLICIES[each], seed=3) for each in ("whole", "spread"))
    assert one.arrived == two.arrived
    assert one.fingerprint != two.fingerprint
    assert simulate(fleet(MIXED), wanted, POLICIES["whole"], seed=4).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "a fleet is written as names and values"),
        ({}, "workers: a fleet has workers"),
        ({"workers": [], "more": 1}, "more: a fleet has no 'more'"),
        ({"workers": [{"gpus": 1}]}, "workers[0]: name is missing"),
        ({"workers": [{"name": "a", "gpus": 1}]}, "workers[0].gpus: expected a list"),
        (
            {"workers": [{"name": "a", "gpus": {"memory": "8 apples"}}]},
            "workers[0].gpus.memory: expected a size",
        ),
        ({"workers": [{"name": "a", "gpus": {}}]}, "workers[0].gpus: memory is missing"),
        ({"workers": [{"name": "a"}, {"name": "a"}]}, "workers[1].name: there are two workers"),
        ({"workers": [{"name": "a", "count": 0}]}, "workers[0].count: expected a number from 1"),
        ({"workers": [{"name": "a", "count": True}]}, "workers[0].count: expected a whole number"),
        ({"workers": [{"name": "a", "count": 100_000}, {"name": "b"}]}, "too many to simulate"),
        (
            {"workers": [{"name": "a", "ram": "8GiB", "reserved": {"ram": "9GiB"}}]},
            "workers[0].reserved.ram: that is more than the 8.0 GiB that the worker has",
        ),
        (
            {"workers": [{"name": "a", "gpus": {"memory": "8GiB"}, "reserved": {"vram": "9GiB"}}]},
            "workers[0].reserved.vram: that is more than the 8.0 GiB that a GPU of the worker has",
        ),
        ({"workers": [{"name": "a", "labels": ["x"]}]}, "workers[0].labels: expected names and values"),
    ],
)
def test_a_wrong_fleet_is_one_line_with_its_place(document: Any, message: str) -> None:
    with pytest.raises(WrongValue) as error:
        fleet(document)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"name": "a"}, "requests[0]: it comes either"),
        ({"name": "a", "every": 1, "at": 1}, "requests[0]: it comes either"),
        ({"name": "a", "every": 0}, "requests[0].every: there is some time"),
        ({"name": "a", "at": 0, "vram": "99999999999TiB"}, "requests[0].vram: no machine has more than"),
        ({"name": "a", "at": 0, "ram": "1" * 400}, "requests[0].ram: no machine has more than"),
        ({"name": "a", "at": "9999999999d"}, "requests[0].at: a hundred years are the longest time"),
        ({"name": "a", "every": "soon"}, "requests[0].every: expected a time"),
        ({"name": "a", "at": 0, "gpus": 2}, "requests[0]: vram is missing"),
        ({"name": "a", "at": 0, "gpus": 0, "vram": "1GiB"}, "requests[0].vram: without GPUs"),
        ({"name": "a", "at": 0, "strategy": "luck"}, "requests[0].strategy: there is no 'luck'; there are:"),
        ({"name": "a", "at": 0, "linked": "yes"}, "requests[0].linked: expected true or false"),
        ({"name": "a", "at": 0, "vrma": 1}, "requests[0].vrma: a kind of request has no 'vrma'"),
        ({"every": 1}, "requests[0]: name is missing"),
        ({"name": "a", "at": 0, "members": [{"ram": "1GiB"}]}, "requests[0].members: expected 2 to 64"),
        ({"name": "a", "at": 0, "members": [{}, {"gpus": 1}]}, "requests[0].members[1]: vram is missing"),
        ({"name": "a", "at": 0, "members": [{}, {}], "ram": "1GiB"}, "requests[0].ram: with `members`"),
    ],
)
def test_a_wrong_workload_is_one_line_with_its_place(request_: Any, message: str) -> None:
    with pytest.raises(WrongValue) as error:
        a_workload(request_)
    assert message in str(error.value)


def test_a_failure_of_a_worker_that_is_not_there_is_told() -> None:
    wanted = a_workload({"name": "a", "at": 0}, failures=[{"worker": "x", "at": 0, "lasts": 1}])
    with pytest.raises(InvalidInput, match=r"failures\[0\].worker: the fleet has no worker 'x'"):
        simulate(fleet(ONE_GPU), wanted, PLAIN)


def test_two_kinds_of_one_name_are_told() -> None:
    with pytest.raises(WrongValue, match=r"requests\[1\].name: there are two kinds"):
        a_workload({"name": "a", "at": 0}, {"name": "a", "at": 0})
