"""An instance over several workers: whatever comes in whatever order, its members start, serve and end together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.lifecycle import group as groups
from gpustack.lifecycle.engine import will_retry
from gpustack.lifecycle.group import Group
from gpustack.plugin import Arrangement
from gpustack.schemas import InstanceMember, InstanceState, MemberReport, MemberState

M, S = MemberState, InstanceState
_PROCESS = (M.STARTING, M.RUNNING)


def a_group(count: int = 2, of: MemberState = M.ASSIGNED, **more: Any) -> Group:
    members = tuple(
        InstanceMember(number=each, worker_id=each + 1, worker_name=f"w{each + 1}", state=of)
        for each in range(count)
    )
    return replace(Group(members=members, attempt=1), **more)


def say(
    group: Group, number: int, state: MemberState, message: str = "", *, attempt: int = 0, **more: Any
) -> Group:
    report = MemberReport(number=number, attempt=attempt or group.attempt, state=state)
    return groups.take(group, report, message, **{"ran": 0.0, "restarts": True, **more})


def test_it_runs_when_all_its_members_run() -> None:
    group = a_group()
    seen = []
    for state in (M.PREPARING, M.PREPARED, M.CHECKED, M.STARTING, M.RUNNING):
        for number in (0, 1):
            group = say(group, number, state)
            seen.append(group.state)

    assert seen[0] is S.SCHEDULED, "as long as a worker has not taken its member"
    assert seen[-2:] == [S.STARTING, S.RUNNING]


def test_the_message_says_whom_the_others_wait_for() -> None:
    group = say(say(a_group(), 0, M.PREPARED), 1, M.PREPARING, "installing the engine")

    assert (group.state, group.message) == (S.INITIALIZING, "member 1 on w2: installing the engine")


def test_a_failure_names_the_member_and_what_happens_next() -> None:
    group = say(a_group(of=M.RUNNING), 1, M.FAILED, "the engine was killed by signal 9")

    assert group.state is S.ERROR
    assert group.message == "member 1 on w2 failed: the engine was killed by signal 9; trying again now"
    assert will_retry(group.message)


def test_the_first_failure_is_told_and_not_what_follows_from_it() -> None:
    group = say(a_group(of=M.RUNNING), 1, M.FAILED, "killed")
    after = say(group, 0, M.FAILED, "lost its follower")

    assert after.message == group.message
    assert after.failures == 1


def test_the_last_lines_of_a_log_stay_behind_what_is_said() -> None:
    group = say(a_group(), 1, M.FAILED, "it ended\nlast lines of its log:\nsome words")

    assert group.message.splitlines()[0].endswith("it ended; trying again now")
    assert group.message.splitlines()[-1] == "some words"


def test_nothing_is_promised_where_trying_again_cannot_help() -> None:
    group = a_group()
    report = MemberReport(number=1, attempt=1, state=M.FAILED, final=True)
    group = groups.take(group, report, "no such version", ran=0.0, restarts=True)

    assert not will_retry(group.message)
    assert groups.is_final(group.members)
    assert not will_retry(say(a_group(), 1, M.FAILED, "ended", restarts=False).message)


def test_a_report_of_an_earlier_attempt_is_old_news() -> None:
    group = groups.again(a_group(of=M.ENDED))

    assert say(group, 1, M.FAILED, attempt=1) == group
    assert say(group, 1, M.RUNNING, attempt=7) == group


def test_the_next_attempt_starts_from_nothing() -> None:
    group = say(a_group(of=M.RUNNING), 1, M.FAILED, "killed")
    group = groups.again(say(group, 0, M.ENDED))

    assert group.attempt == 2
    assert {each.state for each in group.members} == {M.ASSIGNED}
    assert (group.state, group.message) == (S.INITIALIZING, "restart 1 after an error")


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0), (2, 10), (3, 20), (20, 300)])
def test_attempts_come_ever_more_rarely(failures: int, seconds: float) -> None:
    assert groups.wait_after(failures) == seconds


def test_a_long_run_forgives_the_failures_before() -> None:
    group = say(replace(a_group(of=M.RUNNING), failures=7), 1, M.FAILED, "x", ran=61.0)

    assert group.failures == 1


def test_silence_of_a_worker_is_over_when_its_member_speaks() -> None:
    group = a_group(3, M.RUNNING, state=S.RUNNING)
    lost = replace(group, members=groups.lost(group, [3]), state=S.UNREACHABLE, message="w3 is silent")

    assert say(lost, 0, M.RUNNING).state is S.UNREACHABLE
    assert say(lost, 0, M.RUNNING).message == "w3 is silent"
    assert say(lost, 2, M.RUNNING).state is S.RUNNING


@pytest.mark.parametrize(
    ("first", "leader", "follower"),
    [("any", True, True), ("leader", True, False), ("followers", False, True)],
)
def test_the_engine_says_who_starts_first(
    first: Literal["any", "leader", "followers"], leader: bool, follower: bool
) -> None:
    members, plan = a_group(of=M.CHECKED).members, Arrangement(first=first)

    assert groups.may_start(members, 0, plan) is leader
    assert groups.may_start(members, 1, plan) is follower


def test_with_ray_the_head_is_first() -> None:
    members = a_group(of=M.CHECKED).members

    assert not groups.may_start(members, 1, Arrangement(ray=True, first="followers"))
    assert groups.may_start(members, 0, Arrangement(ray=True, first="followers"))


# Any order of anything -----------------------------------------------------------------------------------------


@dataclass
class _Worker:
    """One member's worker: it knows the row as it was told last, and drives its process by that."""

    number: int
    view: Group
    state: MemberState = M.ASSIGNED
    attempt: int = 1
    sent: list[MemberReport] = field(default_factory=list)

    def tell(self, state: MemberState) -> None:
        self.state = state
        self.sent.append(MemberReport(number=self.number, attempt=self.attempt, state=state))

    def act(self, plan: Arrangement) -> None:
        """Do the next thing that there is to do."""
        view = self.view
        if view.attempt > self.attempt:
            if self.state in _PROCESS:
                self.tell(M.ENDED)
                return
            self.attempt, self.state = view.attempt, M.ASSIGNED
        if groups.is_broken(view.members):
            if self.state not in (M.FAILED, M.ENDED):
                self.tell(M.ENDED)
            return
        members = view.members
        if self.state is M.ASSIGNED:
            self.tell(M.PREPARING)
        elif self.state is M.PREPARING:
            self.tell(M.PREPARED)
        elif self.state is M.PREPARED and groups.may_check(members):
            self.tell(M.CHECKED)
        elif self.state is M.CHECKED and groups.may_start(members, self.number, plan):
            self.tell(M.STARTING)
        elif self.state is M.STARTING:
            self.tell(M.RUNNING)


class _World:
    """The server, the workers, and messages under way between them; nobody waits for anybody."""

    def __init__(self, count: int, plan: Arrangement) -> None:
        self.group = a_group(count)
        self.plan = plan
        self.workers = [_Worker(each, self.group) for each in range(count)]

    def step(self, what: str, number: int) -> None:
        worker = self.workers[number % len(self.workers)]
        if what == "row":
            worker.view = self.group
        elif what == "report" and worker.sent:
            said = worker.sent.pop(0)
            self.group = groups.take(self.group, said, "x", ran=0.0, restarts=True)
        elif what == "act":
            worker.act(self.plan)
        elif what == "fail" and worker.state not in (M.ASSIGNED, M.FAILED, M.ENDED):
            worker.tell(M.FAILED)
        elif what == "again" and groups.is_over(self.group.members):
            self.group = groups.again(self.group)
        self.check()

    def check(self) -> None:
        processes = [each for each in self.workers if each.state in _PROCESS]
        assert len({each.attempt for each in processes}) <= 1, "two attempts have processes"
        if processes:
            known = [each.state for each in self.workers if each.attempt == processes[0].attempt]
            early = {M.ASSIGNED, M.PREPARING, M.PREPARED}
            assert len(known) == len(self.workers), "one runs that not all had come for"
            assert not early & set(known), "one started before all had found each other"
        if self.group.state is S.RUNNING:
            assert all(each.state is M.RUNNING for each in self.group.members)
        if groups.is_over(self.group.members):
            assert not [each for each in processes if each.attempt == self.group.attempt]


@given(
    count=st.integers(2, 4),
    first=st.sampled_from(("any", "leader", "followers")),
    steps=st.lists(
        st.tuples(st.sampled_from(("row", "report", "act", "act", "fail", "again")), st.integers(0, 3)),
        max_size=120,
    ),
)
def test_members_start_and_end_together_whatever_happens(
    count: int, first: Literal["any", "leader", "followers"], steps: list[tuple[str, int]]
) -> None:
    world = _World(count, Arrangement(first=first))
    for what, number in steps:
        world.step(what, number)

    # When nothing fails any more, it runs in the end.
    for _ in range(40):
        for number in range(count):
            for what in ("report", "row", "act", "again"):
                world.step(what, number)
    assert world.group.state is S.RUNNING
    assert len({each.attempt for each in world.workers}) == 1
