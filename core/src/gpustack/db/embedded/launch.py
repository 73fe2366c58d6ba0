"""Becomes another program, as another user if told so, that ends when the process which started it does.

It runs as a file, ``python -I -S launch.py PARENT USER WATCH PROGRAM [ARGUMENT …]``, with nothing but the standard
library, because that starts in 9 ms. PARENT is the process number of who started it; USER is ``UID:GID`` or ``-``;
WATCH is ``-`` where the system itself ends a child with its parent, else the descriptor of a pipe that closes then.

The order matters: a change of user clears the death signal, so that comes second. The signal is SIGTERM, after which
PostgreSQL lets its clients finish: the server, which learns of the same death, still writes what was asked of it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

#: Exit statuses of this file itself, which the programs it starts do not use.
CANNOT_CHANGE_USER = 125
CANNOT_RUN = 126

_PR_SET_PDEATHSIG = 1
#: What arrives on the pipe when the program has ended already and nothing is left to do.
ALL_DONE = b"."


def _change_user(user: str) -> None:
    uid, gid = map(int, user.split(":"))
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _prctl() -> Callable[..., int]:
    import ctypes

    found: Callable[..., int] = ctypes.CDLL(None).prctl
    return found


def _end_with_parent(parent: int, prctl: Callable[..., int]) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


def _watch(pipe: int) -> None:
    """Leave a process behind that ends this one when the other end of ``pipe`` closes.

    It is no child of this one, which would be surprised by a child it does not know.
    """
    target = os.getpid()
    if child := os.fork():
        os.waitpid(child, 0)
        return
    if os.fork():
        os._exit(0)
    if os.read(pipe, 1) != ALL_DONE:
        os.kill(target, signal.SIGTERM)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Do what the module says; returns never."""
    parent, user, watch, *program = arguments
    # As a program expects them: an interrupt ends it (without a traceback of ours), and so does a closed pipe.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # Loaded before the change of user, who may not be able to read an interpreter below somebody's home.
    prctl = _prctl() if watch == "-" else None
    if user != "-":
        try:
            _change_user(user)
        except OSError as error:
            sys.stderr.write(f"cannot become user {user}: {error.strerror}\n")
            sys.exit(CANNOT_CHANGE_USER)
    if prctl is not None:
        _end_with_parent(int(parent), prctl)
    else:
        _watch(int(watch))
        os.close(int(watch))
    try:
        os.execv(program[0], program)
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.exit(CANNOT_RUN)


if __name__ == "__main__":
    main(sys.argv[1:])
