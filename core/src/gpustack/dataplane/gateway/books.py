"""What is written down of each request: for the bill, for the access log, for dashboards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpustack.dataplane.metering.access_log import AccessLog, Line
from gpustack.dataplane.metering.frames import Entry
from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.metering.metrics import Metrics, ModelSeries

if TYPE_CHECKING:
    from gpustack.dataplane.gateway.inference import Inference
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

    def close(self, done: Inference) -> None:
        """Write down a request for a model that has ended, however it did."""
        if done.asked_engine and self.journal is not None:
            self._enter(self.journal, done)
        if self.metrics is not None:
            self._count(self.metrics, done)
        if self.access_log is not None:
            self._tell(self.access_log, done)

    def note(self, request: Request, status: int, *, reply: Reply | None = None, began: float = 0.0) -> None:
        """Write down a request that came to no model: the server's, or one that was refused at once."""
        if self.access_log is not None:
            self.access_log.write(
                Line(
                    time=self.wall(),
                    request_id="",
                    method=request.method.decode("latin-1"),
                    path=request.path.decode("latin-1"),
                    status=status,
                    duration=began,
                    bytes_in=len(request.body),
                    bytes_out=reply.sent if reply is not None else 0,
                    peer=request.peer or None,
                )
            )

    # All fields in their order: by name they would cost seven times as much, for each request.

    def _enter(self, journal: Journal, done: Inference) -> None:
        usage, principal = done.usage, done.principal
        reader = done.reader
        streamed = reader is not None and reader.chunks > 0
        entry = Entry(
            journal.new_id(),
            self.wall(),
            done.model,
            done.instance_id,
            principal.user_id,
            principal.key_id,
            done.status,
            usage.prompt,
            usage.cached,
            usage.completion,
            done.time_to_first_token if streamed else None,
            done.duration,
            done.operation.name,
            done.route_name,
            done.queued,
            done.between_tokens if streamed else None,
            usage.estimated,
        )
        journal.append(entry)

    def _count(self, metrics: Metrics, done: Inference) -> None:
        route = done.route_name
        series = self._series.get(route)
        if series is None:
            series = self._new_series(metrics, route)
        series.ended(done.status, done.duration)
        if done.refused_for:
            metrics.refused.of(route, done.refused_for).add()
        if not done.asked_engine:
            return
        usage = done.usage
        series.took(usage.prompt, usage.cached, usage.completion)
        if done.reader is not None and done.reader.chunks and (first := done.time_to_first_token) is not None:
            metrics.time_to_first_token.of(route).observe(first)
        if done.queued:
            metrics.queue_time.of(route).observe(done.queued)
        if done.retries:
            metrics.retries.of(route).add(done.retries)

    def _new_series(self, metrics: Metrics, route: str) -> ModelSeries:
        if len(self._series) >= _KEPT:
            self._series.clear()
        series = self._series[route] = metrics.of_model(route)
        return series

    def _tell(self, access_log: AccessLog, done: Inference) -> None:
        request, usage, principal, operation = done.request, done.usage, done.principal, done.operation
        reader = done.reader
        line = Line(
            self.wall(),
            done.request_id.decode("latin-1"),
            "POST" if request.method == b"POST" else request.method.decode("latin-1"),
            operation.name if request.path == operation.path else request.path.decode("latin-1"),
            done.status,
            done.duration,
            len(request.body),
            done.reply.sent,
            request.peer or None,
            principal.username,
            principal.user_id,
            principal.key_id,
            done.route_name or None,
            done.model or None,
            done.instance_id,
            done.queued or None,
            done.time_to_first_token if reader is not None and reader.chunks else None,
            usage.prompt or None,
            usage.completion or None,
            done.retries,
            done.trouble or None,
        )
        access_log.write(line)
