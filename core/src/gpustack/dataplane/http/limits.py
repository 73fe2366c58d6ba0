"""How much a peer may take, and how long it may keep one waiting."""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes of a read that was as large as reads are: more follows, and the event loop would take 32 of them in a row. Whoever
#: sends so much lets others have their turn after each.
FULL_READ = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of both sides. Sizes are bytes, times seconds.

    Times are held by a sweep: what is due is ended at the latest ``sweep`` seconds afterwards, never earlier.
    """

    # Requests -------------------------------------------------------------------------------------------

    #: Request line and headers together. An endless head is refused with 431.
    head_bytes: int = 64 * 1024
    #: Path and query; 414 above.
    target_bytes: int = 8 * 1024
    #: How many header fields; 431 above.
    headers: int = 100
    #: One body, unless the service says otherwise for a request; 413 above.
    body_bytes: int = 64 << 20
    #: All bodies that are held at the same time, but for those of strangers; 503 with Retry-After above.
    all_bodies_bytes: int = 256 << 20
    #: How much of that one owner may have, and how much is kept for small bodies when large ones take the rest.
    owner_share: float = 0.75
    reserved_share: float = 0.125
    #: The largest body that is small: a long conversation without pictures.
    small_body_bytes: int = 256 * 1024
    #: All bodies of strangers, whom the service does not know or leaves to somebody else to know; beside the others.
    stranger_bodies_bytes: int = 32 << 20
    #: The bodies of the strangers at one address, or in one IPv6 network of 64 bits.
    peer_bodies_bytes: int = 8 << 20
    #: What a body in chunks may hold beside the data and a plain line for each chunk: extensions and trailers.
    chunk_overhead_bytes: int = 16 * 1024
    #: A refused request's body up to this is read and thrown away, so that the connection can be used on.
    swallowed_bytes: int = 1 << 20
    #: Requests that one read may hold. Whoever sends more gets these answered and is then disconnected.
    pipelined: int = 16
    #: Bytes that may arrive while a request is worked on, before the client is made to wait.
    held_bytes: int = 64 * 1024
    #: Open connections; who comes beyond them is told 503.
    connections: int = 20_000

    #: From the first byte of a head to its end.
    head_seconds: float = 20.0
    #: The longest silence within a body; and for all of it, beside what its size allows at ``body_rate``.
    body_seconds: float = 30.0
    #: Bytes per second that a client has to send of a body, on average.
    body_rate: int = 16 * 1024
    #: The same beyond the first ``large_bytes``.
    large_body_rate: int = 64 * 1024
    large_bytes: int = 1 << 20
    #: Between two requests, and until the first.
    keep_alive_seconds: float = 75.0
    #: For a client that takes nothing of its answer.
    write_seconds: float = 60.0
    #: For a client that goes on sending what has been refused.
    linger_seconds: float = 5.0

    # Answers --------------------------------------------------------------------------------------------

    #: The head of an engine's answer with all that precedes it.
    answer_head_bytes: int = 64 * 1024
    #: Header fields of an answer.
    answer_headers: int = 200
    #: Extensions and trailers that an engine may send in a row, without any data between them.
    answer_quiet_bytes: int = 64 * 1024
    #: Unused connections to one engine.
    idle_connections: int = 256
    #: How long an unused connection is kept. Engines close theirs after 5 s and do not look whether a request
    #: came in the same moment; and one that is to end waits until nobody is connected.
    idle_seconds: float = 2.0

    # Both -----------------------------------------------------------------------------------------------

    #: Between two looks at the clock.
    sweep_seconds: float = 1.0
    #: Networks in CIDR notation whose word on where a request came from is believed.
    trusted_proxies: tuple[str, ...] = ()
