"""The life of an instance that spans workers: members that start together, serve together and end together. Pure.

    ASSIGNED ──▶ PREPARING ──▶ PREPARED ──▶ CHECKED ──▶ STARTING ──▶ RUNNING
                                 (all)       (all)     (in the engine's order)

Each worker drives its own member by what it sees of the others: it goes on from PREPARED once all have their ports,
and from CHECKED once all reach all. When one member fails, all the others end; once all have, the next attempt
begins, with a higher number, so that whatever an earlier one still has to say is known for old.

The server takes reports with :func:`take` and begins attempts with :func:`again`; workers ask :func:`may_check`,
:func:`may_start` and :func:`is_broken`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpustack.kit.backoff import delay
from gpustack.lifecycle.engine import EngineLimits, retrying
from gpustack.plugin.values import Arrangement
from gpustack.schemas.instances import (
    InstanceMember,
    InstanceState,
    MemberReport,
    MemberState,
    ModelInstancePublic,
)

_M = MemberState
_S = InstanceState

#: How far a member has come in an attempt that goes on.
_STEPS = (_M.ASSIGNED, _M.PREPARING, _M.PREPARED, _M.CHECKED, _M.STARTING, _M.RUNNING)
_RANK = {state: rank for rank, state in enumerate(_STEPS)}
_OVER = (_M.FAILED, _M.ENDED)
_LIMITS = EngineLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """An instance as the sum of its members."""

    members: tuple[InstanceMember, ...]
    attempt: int
    #: Attempts in a row that failed.
    failures: int = 0
    state: InstanceState = _S.SCHEDULED
    message: str = ""


def of(instance: ModelInstancePublic) -> Group:
    """Return the group that an instance is. Only for one with members."""
    return Group(
        members=tuple(instance.members),
        attempt=instance.attempt,
        failures=instance.failed_attempts,
        state=instance.state,
        message=instance.state_message,
    )


def columns(before: Group, after: Group) -> dict[str, Any]:
    """Return the columns of the instance's row in which the two differ."""
    names = {"members": "members", "attempt": "attempt", "failed_attempts": "failures"}
    names |= {"state": "state", "state_message": "message"}
    found = {
        column: getattr(after, name)
        for column, name in names.items()
        if getattr(before, name) != getattr(after, name)
    }
    return found | ({"members": list(after.members)} if "members" in found else {})


def is_broken(members: Sequence[InstanceMember]) -> bool:
    """Tell whether the attempt has failed: then everybody ends."""
    return any(each.state is _M.FAILED for each in members)


def is_over(members: Sequence[InstanceMember]) -> bool:
    """Tell whether no member has a process any more."""
    return all(each.state in _OVER for each in members)


def is_final(members: Sequence[InstanceMember]) -> bool:
    """Tell whether the attempt failed in a way that another one cannot help."""
    return any(each.state is _M.FAILED and each.final for each in members)


def may_check(members: Sequence[InstanceMember]) -> bool:
    """Tell whether all members have their ports, so that it can be tried whether they reach each other."""
    return all(_RANK.get(each.state, -1) >= _RANK[_M.PREPARED] for each in members)


def all_checked(members: Sequence[InstanceMember]) -> bool:
    """Tell whether all members reach all others."""
    return all(_RANK.get(each.state, -1) >= _RANK[_M.CHECKED] for each in members)


def may_start(members: Sequence[InstanceMember], number: int, arrangement: Arrangement) -> bool:
    """Tell whether the process of member ``number`` may start now."""
    if not all_checked(members):
        return False
    first = "leader" if arrangement.ray else arrangement.first
    if first == "leader" and number > 0:
        return members[0].state in (_M.STARTING, _M.RUNNING)
    if first == "followers" and number == 0:
        return all(each.state is _M.RUNNING for each in members[1:])
    return True


def take(
    group: Group, report: MemberReport, message: str, *, ran: float, restarts: bool, resolved_path: str = ""
) -> Group:
    """Return the group after a worker has said how its member is; what is about another attempt changes nothing.

    ``ran`` is how long the instance was RUNNING, 0 when it was not; ``restarts`` whether another attempt follows.
    """
    old = group.members[report.number]
    if report.attempt != group.attempt or (old.state in _OVER and report.state not in _OVER):
        return group
    # An end that was a failure stays one: it says why all others end.
    state = old.state if old.state is _M.FAILED else report.state
    new = old.model_copy(
        update={
            "state": state,
            "state_message": old.state_message if old.state is _M.FAILED else message,
            "final": old.final or report.final,
            "host": report.host or old.host,
            "interface": report.interface or old.interface,
            "ports": list(report.ports),
            "devices": list(report.devices),
            "resolved_path": resolved_path or old.resolved_path,
        }
    )
    members = (*group.members[: report.number], new, *group.members[report.number + 1 :])
    if not is_broken(members):
        state_, said = _sum(members, group)
        failures = 0 if state_ is _S.RUNNING and ran >= _LIMITS.stable else group.failures
        return replace(group, members=members, state=state_, message=said, failures=failures)
    if is_broken(group.members):
        # What follows from the first failure is not another one.
        said = group.message if group.state is _S.ERROR else told(members, restarts=restarts, wait=0.0)
        return replace(group, members=members, state=_S.ERROR, message=said)
    failures = 1 if ran >= _LIMITS.stable else group.failures + 1
    said = told(members, restarts=restarts, wait=wait_after(failures))
    return replace(group, members=members, state=_S.ERROR, message=said, failures=failures)


def told(members: Sequence[InstanceMember], *, restarts: bool, wait: float) -> str:
    """Return what is said of an attempt that failed: which member, where, and why."""
    member = next(each for each in members if each.state is _M.FAILED)
    said = f"{named(member)} failed: {member.state_message}"
    return retrying(said, wait) if restarts and not is_final(members) else said


def named(member: InstanceMember) -> str:
    """Return how a member is called in messages."""
    role = "the leader" if member.number == 0 else f"member {member.number}"
    return f"{role} on {member.worker_name}"


def wait_after(failures: int) -> float:
    """Return the seconds before the next attempt, after so many in a row that failed."""
    if failures <= 1:
        return 0.0
    return delay(failures - 2, first=_LIMITS.backoff, limit=_LIMITS.backoff_limit)


def again(group: Group) -> Group:
    """Return the group at the beginning of its next attempt. Only for one that is over."""
    members = tuple(_fresh(each) for each in group.members)
    message = f"restart {group.failures} after an error" if group.failures else "starting its members again"
    return replace(group, members=members, attempt=group.attempt + 1, state=_S.INITIALIZING, message=message)


def lost(group: Group, worker_ids: Sequence[int]) -> tuple[InstanceMember, ...]:
    """Return the members when these workers are silent: what their members do is not known."""
    return tuple(
        each.model_copy(update={"state": _M.UNREACHABLE})
        if each.worker_id in worker_ids and each.state not in _OVER
        else each
        for each in group.members
    )


def _fresh(member: InstanceMember) -> InstanceMember:
    return member.model_copy(
        update={"state": _M.ASSIGNED, "state_message": "", "ports": [], "pid": None, "final": False}
    )


def _sum(members: Sequence[InstanceMember], group: Group) -> tuple[InstanceState, str]:
    """Return what an instance is whose members are so."""
    states = {each.state for each in members}
    if _M.UNREACHABLE in states:
        return _S.UNREACHABLE, group.message
    if states & set(_OVER):
        return group.state, group.message  # it drains, or nobody has failed and somebody was asked to end
    if states == {_M.RUNNING}:
        return _S.RUNNING, ""
    slowest = min(members, key=lambda each: (_RANK[each.state], each.number))
    where = f"{named(slowest)}: {slowest.state_message}" if slowest.state_message else ""
    if slowest.state is _M.ASSIGNED:
        waits = group.state if group.state in (_S.SCHEDULED, _S.INITIALIZING) else _S.INITIALIZING
        return waits, f"waiting for {named(slowest)}"
    if slowest.state is _M.PREPARING:
        return _S.INITIALIZING, where or f"waiting for {named(slowest)}"
    if states & {_M.STARTING, _M.RUNNING}:
        return _S.STARTING, where or f"waiting for {named(slowest)}"
    return _S.INITIALIZING, "the members look for each other"
