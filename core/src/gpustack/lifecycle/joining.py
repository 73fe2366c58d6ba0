"""Who may be the worker that a row stands for, and which of its starts counts. Pure.

A worker has one start at a time. Where two say that they are it, a restart has to be told from a copy, at once: a
restart waits for nothing, a copy must not touch what the other one runs. Disks are copied with everything on them, so
these tell a copy while the other is alive: another place, another start of the system, or that the start before the
present one speaks again. The one that runs instances stays; the copy is refused until it has a key of its own.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from gpustack.kit.errors import Conflict, Unauthenticated


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is kept of a worker that has joined before."""

    name: str
    hostname: str
    ip: str
    home: str
    boot: str
    door_token: str = field(repr=False)
    #: Empty for one that has proven none.
    public_key: str
    session: int
    start: str
    earlier_start: str
    refused_start: str
    #: It was heard so recently that it must be taken to run.
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a registration says. ``public_key`` is proven; empty without a proof."""

    hostname: str
    ip: str
    home: str
    boot: str
    start: str
    door_token: str = field(repr=False)
    public_key: str
    #: It came with the worker's own credential.
    by_credential: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What is kept of the starts from now on. ``contested``: a copy was let in before, and is out again."""

    session: int
    start: str
    earlier_start: str = ""
    refused_start: str = ""
    contested: bool = False


def first(claim: Claim) -> Start:
    """Return the start of a worker that joins for the first time."""
    return Start(session=1 if claim.start else 0, start=claim.start)


def admit(known: Known, claim: Claim) -> Start:
    """Return which start counts from now on.

    Raises Conflict while the worker is alive and this is another one, Unauthenticated when what was shown does not
    prove that this is the worker.
    """
    proven = bool(known.public_key) and claim.public_key == known.public_key
    if not proven:
        _check_unproven(known, claim)
    if claim.start == known.start:
        return Start(
            session=known.session,
            start=known.start,
            earlier_start=known.earlier_start,
            refused_start=known.refused_start,
        )
    if known.alive and claim.start and claim.start == known.earlier_start:
        # It was taken to have ended when the present one came, and has not: so that one is the copy.
        return Start(session=known.session + 1, start=claim.start, refused_start=known.start, contested=True)
    if known.alive and (
        _differ(known.home, claim.home)
        or _differ(known.boot, claim.boot)
        or (claim.start and claim.start == known.refused_start)
    ):
        raise _another(known, claim)
    return Start(session=known.session + 1, start=claim.start, earlier_start=known.start)


def _check_unproven(known: Known, claim: Claim) -> None:
    """Let in what has no key yet, or has lost it, by the place that it comes from and its other secrets."""
    if known.public_key and not claim.by_credential:
        if known.alive:
            raise _another(known, claim)
        raise Conflict(f"worker {known.name} proves who it is by a key that this one does not have")
    if _at_home(known, claim):
        return
    if known.alive:
        raise _another(known, claim)
    if claim.by_credential:
        raise Unauthenticated(
            f"worker {known.name} was registered from another place, and its credential counts only there"
        )


def _at_home(known: Known, claim: Claim) -> bool:
    """Tell whether a claim comes from where the worker is that has its row."""
    if known.home and claim.home:
        return known.home == claim.home
    if claim.by_credential:
        return True
    # The server's own worker has no home, nor had those of versions before; what proves them is their other secret.
    same = hmac.compare_digest(known.door_token.encode(), claim.door_token.encode())
    return not known.home and same


def _differ(one: str, other: str) -> bool:
    return bool(one and other and one != other)


def _another(known: Known, claim: Claim) -> Conflict:
    return Conflict(
        f"worker {known.name} is alive on {known.hostname or 'another machine'} ({known.ip}), and a worker on "
        f"{claim.hostname or 'another machine'} ({claim.ip}) says that it is the same one: was its data "
        "directory copied?"
    )
