"""What a gateway counts, by the names that dashboards see."""

from __future__ import annotations

from bisect import bisect_left

from gpustack.dataplane.metering.numbers import GAPS, Slot

_P = "gpustack_gateway_"


class Metrics:
    """The families of one process. Keep the series of a route (``metrics.requests.of(name, 200)``) where that is easy."""

    def __init__(self, slot: Slot) -> None:
        self.requests = slot.counters(f"{_P}requests_total", "Requests answered.", "model", "status")
        self.time_to_first_token = slot.histograms(
            f"{_P}time_to_first_token_seconds", "From the request to the first piece of a stream.", "model"
        )
        self.between_tokens = slot.histograms(
            f"{_P}inter_token_seconds", "Between two pieces of a stream.", "model", bounds=GAPS
        )
        self.duration = slot.histograms(
            f"{_P}request_seconds", "From the request to the end of its answer.", "model"
        )
        #: ``kind`` is prompt, cached or completion; cached ones are among the prompts' too.
        self.tokens = slot.counters(f"{_P}tokens_total", "Tokens of prompts and answers.", "model", "kind")
        self.queue_length = slot.gauges(f"{_P}queue_requests", "Requests that wait for their turn.", "model")
        self.queue_tokens = slot.gauges(f"{_P}queue_tokens", "Tokens of requests that wait.", "model")
        self.queue_time = slot.histograms(f"{_P}queue_seconds", "How long requests waited.", "model")
        #: ``reason`` is rate_limit, queue_full, queue_timeout, asleep or none_running.
        self.refused = slot.counters(f"{_P}refused_total", "Requests refused.", "model", "reason")
        self.running = slot.gauges(f"{_P}running_requests", "Requests at engines.", "model")
        self.retries = slot.counters(
            f"{_P}retries_total", "Attempts at another instance after one failed.", "model"
        )
        self.ejections = slot.counters(
            f"{_P}ejections_total", "Instances taken out for a while after failing.", "model"
        )
        #: ``side`` is client or engine.
        self.connections = slot.gauges(f"{_P}connections", "Open connections.", "side")
        self.connections_made = slot.counters(f"{_P}connections_total", "Connections made.", "side")
        #: ``direction`` is in or out, seen from the gateway.
        self.bytes = slot.counters(f"{_P}bytes_total", "Bytes carried.", "side", "direction")
        self.journal_lost = slot.counters(f"{_P}usage_records_lost_total", "Usage records lost.")

    def of_model(self, model: str) -> ModelSeries:
        """Return the series that each request for ``model`` adds to. Keep it."""
        return ModelSeries(self, model)


class ModelSeries:
    """What requests for one model are counted in. Series come into being with what is first counted there."""

    __slots__ = (
        "_at",
        "_bounds",
        "_cached",
        "_completion",
        "_metrics",
        "_model",
        "_ok",
        "_prompt",
        "_sum",
        "_values",
    )

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        duration = metrics.duration.of(model)
        self._values = duration.values
        self._at = duration.at
        self._bounds = duration.bounds
        self._sum = duration.at + len(duration.bounds) + 1
        #: Places; -1 is none yet.
        self._ok = self._prompt = self._cached = self._completion = -1

    def refused(self, status: int, seconds: float) -> None:
        """Count a request that came to no engine and was answered after ``seconds``."""
        self._metrics.requests.of(self._model, status).add()
        values = self._values
        values[self._at + bisect_left(self._bounds, seconds)] += 1
        values[self._sum] += seconds

    def answered(self, status: int, seconds: float, prompt: int, cached: int, completion: int) -> None:
        """Count a request that an engine answered after ``seconds``, and the tokens of the answer."""
        values = self._values
        if status == 200 and self._ok >= 0:
            values[self._ok] += 1
        else:
            self._note(status)
        values[self._at + bisect_left(self._bounds, seconds)] += 1
        values[self._sum] += seconds
        if prompt:
            values[self._prompt if self._prompt >= 0 else self._place("prompt")] += prompt
        if cached:
            values[self._cached if self._cached >= 0 else self._place("cached")] += cached
        if completion:
            values[self._completion if self._completion >= 0 else self._place("completion")] += completion

    def _note(self, status: int) -> None:
        series = self._metrics.requests.of(self._model, status)
        series.add()
        if status == 200:
            self._ok = series.at

    def _place(self, kind: str) -> int:
        at = self._metrics.tokens.of(self._model, kind).at
        setattr(self, f"_{kind}", at)
        return at
