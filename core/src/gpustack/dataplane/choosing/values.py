"""What is told to a choice, and what is told of it afterwards."""

from __future__ import annotations

from enum import Enum

import msgspec


class Outcome(Enum):
    """How an attempt at one instance ended."""

    #: The engine answered, whatever it said: a refusal of a bad request is no fault of the engine.
    OK = "ok"
    #: The client left first: tells nothing of the engine.
    CLIENT_LEFT = "client left"
    #: Nobody accepted the connection.
    CONNECT_FAILED = "connect failed"
    #: A status of 500 or more, a broken answer, or a connection that ended early.
    SERVER_ERROR = "server error"
    #: Nothing came for longer than the route's limits.
    TIMEOUT = "timeout"


class Hints(msgspec.Struct, eq=False, gc=False):
    """What is known of a request before it is sent. Counts are tokens; all of it may be left out."""

    #: About how long the prompt is.
    tokens: int = 0
    #: How it begins: :func:`prefix.marks`.
    marks: tuple[int, ...] = ()
    #: What the client's session header says: :func:`prefix.session`; 0 is none.
    session: int = 0
    #: The most that the answer may have; 0 when the request does not say.
    max_tokens: int = 0


NO_HINTS = Hints()
