"""Engines with prefix caches, and clients that ask them, on a simulated clock: no figure depends on the machine."""

from __future__ import annotations

import heapq
from bisect import bisect
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count
from random import Random
from typing import Protocol

from gpustack.dataplane.choosing import Lease, Outcome, prefix

ENGINES, SLOTS = 8, 32
#: Tokens a second: of an engine's one prefill at a time, and of each stream.
PREFILL, DECODE = 8000.0, 40.0
#: Tokens that an engine's cache holds; what was used least recently leaves first, what only one request had too.
CACHE = 200_000
PREFIXES, SHARED, OWN, ANSWER = 400, 4000, 300, 150


@dataclass(slots=True)
class Request:
    """One request, its ``arrived`` in units of the mean time between two until it is played. Sizes are tokens."""

    number: int
    arrived: float
    #: Which prefix it shares; -1 is none.
    group: int
    shared: int
    own: int
    answer: int
    marks: tuple[int, ...]
    engine: int = -1
    lease: Lease | None = None
    first: float = 0.0
    finished: float = 0.0
    failed: bool = False


class Policy(Protocol):
    """Who chooses."""

    def pick(self, request: Request) -> int:
        """Return the number of an engine."""

    def first(self, request: Request) -> None:
        """Take note of the first token."""

    def done(self, request: Request, outcome: Outcome) -> None:
        """Take note that it is over."""


def requests(
    seed: int, number: int, *, alike: float = 1.0, spread: bool = False, prefixes: int = PREFIXES
) -> list[Request]:
    """Return Poisson arrivals, of which ``alike`` share one of ``prefixes``, by Zipf's law with exponent 1.

    The rest have prompts of the same length with nothing in common; with ``spread`` all answers are of exponential,
    and their prompts of lognormal length. Bodies are real bytes, of which the marks are kept.
    """
    random = Random(seed)
    texts = [_text(random, SHARED) for _ in range(prefixes)]
    sums = list(accumulate(1 / rank for rank in range(1, prefixes + 1)))
    salt = prefix.salt("m")
    found = []
    now = 0.0
    for each in range(number):
        now += random.expovariate(1.0)
        group = bisect(sums, random.random() * sums[-1]) if random.random() < alike else -1
        size = int(random.lognormvariate(7.5, 1.0)) + 50 if spread else SHARED
        answer = int(random.expovariate(1 / ANSWER)) + 10 if spread else ANSWER
        text = _text(random, size) if group < 0 else texts[group]
        marks = prefix.marks(_BODY % (text, _text(random, OWN)), salt)
        shared, own = (0, size + OWN) if group < 0 else (SHARED, OWN)
        found.append(Request(each, now, group, shared, own, answer, marks))
    return found


_BODY = b'{"model":"m","messages":[{"role":"system","content":"%b"},{"role":"user","content":"%b"}]}'


def _text(random: Random, tokens: int) -> bytes:
    return random.randbytes(tokens * prefix.BYTES_PER_TOKEN // 2).hex().encode()


class Engine:
    """Slots, one prefill at a time, streams of equal speed, and a cache."""

    def __init__(self, run: Run, speed: float) -> None:
        self._run = run
        self._speed = speed
        #: Answers every request with an error, at once: what draws all requests to it where only load is looked at.
        self.failing = False
        self._waiting: deque[Request] = deque()
        self._prefills: deque[Request] = deque()
        self._reading = False
        self._running = 0
        self._cache: OrderedDict[int, int] = OrderedDict()
        self._cached = 0

    def take(self, request: Request) -> None:
        """Begin with a request, or let it wait for a slot."""
        if self.failing:
            self._run.after(0.001, lambda: self._run.over(request, Outcome.SERVER_ERROR))
        elif self._running < SLOTS:
            self._start(request)
        else:
            self._waiting.append(request)

    def _start(self, request: Request) -> None:
        self._running += 1
        self._prefills.append(request)
        if not self._reading:
            self._read_next()

    def _read_next(self) -> None:
        self._reading = bool(self._prefills)
        if not self._prefills:
            return
        request = self._prefills.popleft()
        todo = request.own
        if request.group in self._cache:
            self._cache.move_to_end(request.group)
        else:
            todo += request.shared
        self._run.after(todo / (PREFILL * self._speed), lambda: self._read(request))

    def _read(self, request: Request) -> None:
        if request.shared:
            self._keep(request.group, request.shared)
        self._keep(PREFIXES + request.number, request.own + request.answer)
        request.first = self._run.now
        self._run.policy.first(request)
        self._run.after(request.answer / (DECODE * self._speed), lambda: self._written(request))
        self._read_next()

    def _written(self, request: Request) -> None:
        self._running -= 1
        self._run.over(request, Outcome.OK)
        if self._waiting:
            self._start(self._waiting.popleft())

    def _keep(self, key: int, tokens: int) -> None:
        self._cached += tokens - self._cache.pop(key, 0)
        self._cache[key] = tokens
        while self._cached > CACHE:
            self._cached -= self._cache.popitem(last=False)[1]


class Run:
    """One policy, eight engines, and a clock of their own, in seconds."""

    def __init__(
        self, policy: Callable[[Callable[[], float]], Policy], speeds: Sequence[float] = (1.0,) * ENGINES
    ) -> None:
        self.now = 0.0
        self.policy = policy(lambda: self.now)
        self.engines = [Engine(self, speed) for speed in speeds]
        self.played: list[Request] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action))

    def over(self, request: Request, outcome: Outcome) -> None:
        """Take note that an engine is done with a request."""
        request.finished = self.now
        request.failed = outcome is not Outcome.OK
        self.policy.done(request, outcome)

    def play(self, asked: Sequence[Request], rate: float, *, to_the_end: bool = True) -> Run:
        """Let the requests arrive, ``rate`` a second; without ``to_the_end``, stop with the last arrival."""
        began = self.now
        for each in asked:
            request = replace(each, arrived=began + each.arrived / rate)
            self.played.append(request)
            self._until(request.arrived)
            request.engine = self.policy.pick(request)
            self.engines[request.engine].take(request)
        if to_the_end:
            self._until(float("inf"))
        return self

    def _until(self, when: float) -> None:
        while self._events and self._events[0][0] <= when:
            self.now, _, action = heapq.heappop(self._events)
            action()
        if when < float("inf"):
            self.now = when
