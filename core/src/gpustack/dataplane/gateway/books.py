"""What is written down of each request: for the bill, for the access log, for dashboards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpustack.dataplane.metering.access_log import AccessLog, Line
from gpustack.dataplane.metering.answers import AnswerReader
from gpustack.dataplane.metering.frames import Entry
from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.metering.metrics import Metrics, ModelSeries
from gpustack.dataplane.metering.open_streams import OpenStream
from gpustack.dataplane.metering.streams import StreamReader
from gpustack.dataplane.metering.usage import Tally

if TYPE_CHECKING:
    from gpustack.dataplane.gateway.course import Course
    from gpustack.dataplane.http import Reply, Request

#: What is noted when the client left before the answer was whole.
LEFT = 499
#: Models whose series are at hand.
_KEPT = 20_000


@dataclass(slots=True)
class Books:
    """Where requests are written down; each part may be missing."""

    journal: Journal | None = None
    access_log: AccessLog | None = None
    metrics: Metrics | None = None
    wall: Callable[[], float] = time.time
    _series: dict[str, ModelSeries] = field(default_factory=dict)

    def begin(self, stream: Course, reader: AnswerReader, prompt_tokens: int) -> OpenStream | None:
        """Keep a stream that an engine begins, so that it is written down even if this process is killed.

        ``prompt_tokens`` is the estimate that counts until the engine tells better. None without a journal.
        """
        journal, principal = self.journal, stream.principal
        if journal is None:
            return None
        metered = stream.operation.metered
        entry = Entry(
            id=journal.new_id(),
            at=self.wall() - (stream.gateway.clock() - stream.began),
            model=stream.model,
            instance_id=stream.instance_id,
            user_id=principal.user_id,
            key_id=principal.key_id,
            status=LEFT,
            prompt_tokens=prompt_tokens if metered else 0,
            operation=stream.operation.name,
            route=stream.route_name,
            queued=stream.queued,
            estimated=metered,
            request_id=stream.request_id.decode("latin-1"),
        )
        tally = reader.tally if isinstance(reader, StreamReader) else Tally()
        return journal.begin(entry, stream.began, tally)

    def close(self, done: Course) -> None:
        """Write down a request for a model that has ended, however it did."""
        usage, principal, reader = done.usage, done.principal, done.reader
        journal, log, metrics = self.journal, self.access_log, self.metrics
        asked, status, duration, route = done.asked_engine, done.status, done.duration, done.route_name
        prompt, cached, completion = usage.prompt, usage.cached, usage.completion
        first = between = None
        if reader is not None and reader.chunks > 0:
            first, between = done.time_to_first_token, done.between_tokens
        # In the order of the fields: by name they would cost seven times as much.
        at, model, instance_id, queued = self.wall(), done.model, done.instance_id, done.queued
        user_id, key_id = principal.user_id, principal.key_id
        request_id = done.request_id.decode("latin-1")
        kept = done.kept
        if asked and journal is not None:
            journal.append(
                Entry(
                    journal.new_id() if kept is None else kept.id,
                    at,
                    model,
                    instance_id,
                    user_id,
                    key_id,
                    status,
                    prompt,
                    cached,
                    completion,
                    first,
                    duration,
                    done.operation.name,
                    route,
                    queued,
                    between,
                    usage.estimated,
                    request_id,
                )
            )
        if kept is not None:
            kept.end()
        if log is not None:
            request = done.request
            log.write(
                Line(
                    at,
                    request_id,
                    request.method.decode("latin-1"),
                    request.path.decode("latin-1"),
                    status,
                    duration,
                    len(request.body),
                    done.reply.sent,
                    request.peer or None,
                    principal.username,
                    user_id,
                    key_id,
                    route or None,
                    model or None,
                    instance_id,
                    queued or None,
                    first,
                    prompt or None,
                    completion or None,
                    done.retries,
                    done.trouble or None,
                )
            )
        if metrics is None:
            return
        way = done.way
        series = None if way is None else way.series
        if series is None:
            series = self._series.get(route) or self._new_series(metrics, route)
            if way is not None:
                way.series = series
        if not asked:
            series.refused(status, duration)
        else:
            series.answered(status, duration, prompt, cached, completion)
            if first is not None or queued or done.retries:
                _count_more(metrics, done, first)
        if done.refused_for:
            metrics.refused.of(route, done.refused_for).add()

    def note(
        self, request: Request, status: int, request_id: bytes, duration: float, *, reply: Reply | None = None
    ) -> None:
        """Write down a request that came to no model, or was refused at once; ``duration`` is seconds."""
        if self.access_log is not None:
            self.access_log.write(
                Line(
                    time=self.wall(),
                    request_id=request_id.decode("latin-1"),
                    method=request.method.decode("latin-1"),
                    path=request.path.decode("latin-1"),
                    status=status,
                    duration=duration,
                    bytes_in=len(request.body),
                    bytes_out=reply.sent if reply is not None else 0,
                    peer=request.peer or None,
                )
            )

    def _new_series(self, metrics: Metrics, route: str) -> ModelSeries:
        if len(self._series) >= _KEPT:
            self._series.clear()
        series = self._series[route] = metrics.of_model(route)
        return series


def _count_more(metrics: Metrics, done: Course, first: float | None) -> None:
    route = done.route_name
    if first is not None:
        metrics.time_to_first_token.of(route).observe(first)
    if done.queued:
        metrics.queue_time.of(route).observe(done.queued)
    if done.retries:
        metrics.retries.of(route).add(done.retries)
