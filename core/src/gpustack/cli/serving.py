"""The options of ``deploy`` and ``update`` that say how a model is served: scaling, times, queue, priority."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import click

from gpustack.cli.usage import Finite

Command = TypeVar("Command", bound=Callable[..., Any])

_DAY = 86_400


class _Option(NamedTuple):
    """One option: where its value goes, and what it takes. ``place`` is empty for the model itself."""

    flag: str
    place: str
    name: str
    kind: click.ParamType[Any]
    said: str


_OPTIONS = (
    _Option(
        "--min-replicas", "", "min_replicas", click.IntRange(0, 1000), "Copies to run at least, when the "
        "number follows what is asked; with 0 the last one ends when nobody asks, and starts for the next request.",
    ),
    _Option(
        "--max-replicas", "", "max_replicas", click.IntRange(1, 1000), "Copies to run at most, when the "
        "number follows what is asked.",
    ),
    _Option(
        "--scale-outstanding", "autoscaling", "outstanding", Finite(min=0), "Requests that each copy is to "
        "have; more make more copies. 0 counts none.",
    ),
    _Option(
        "--scale-kv-cache", "autoscaling", "kv_cache", Finite(min=0, max=100), "Percent of the KV caches "
        "to be in use; more make more copies. 0 looks at none.",
    ),
    _Option(
        "--scale-up-seconds", "autoscaling", "up_seconds", Finite(min=0), "How long more copies have to be "
        "needed first.",
    ),
    _Option(
        "--scale-down-seconds", "autoscaling", "down_seconds", Finite(min=0), "How long fewer copies have to "
        "be enough first.",
    ),
    _Option(
        "--idle-seconds", "autoscaling", "idle_seconds", Finite(min=0.001), "Without a request for this long "
        "the last copy ends, with --min-replicas 0.",
    ),
    _Option(
        "--start-seconds", "autoscaling", "start_seconds", Finite(min=0.001), "How long requests wait for "
        "the first copy to start.",
    ),
    _Option(
        "--priority", "", "priority", click.IntRange(-1_000_000, 1_000_000), "Models of a higher one are "
        "placed first.",
    ),
    _Option(
        "--strategy", "", "placement_strategy", click.Choice(["spread", "binpack"]), "Spread copies over "
        "workers, or pack GPUs full.",
    ),
    _Option(
        "--across-workers", "", "distributed_inference_across_workers", click.BOOL, "Whether a copy that fits on "
        "no single worker may be divided over several; by default it may.",
    ),
    _Option(
        "--connect-timeout", "timeouts", "connect", Finite(min=0.001), "Seconds for a connection to a copy.",
    ),
    _Option(
        "--first-byte-timeout", "timeouts", "first_byte", Finite(min=0.001), "Seconds until an answer begins.",
    ),
    _Option(
        "--between-timeout", "timeouts", "between", Finite(min=0.001), "Seconds between two pieces of an answer.",
    ),
    _Option(
        "--queue-slots", "queue", "slots", click.IntRange(1, 100_000), "Requests that a copy works on at a "
        "time; others wait at the gateway.",
    ),
    _Option(
        "--queue-tokens", "queue", "tokens", click.IntRange(0), "Tokens that may wait for each copy.",
    ),
    _Option(
        "--queue-requests", "queue", "requests", click.IntRange(0), "Requests that may wait for each copy.",
    ),
    _Option(
        "--queue-seconds", "queue", "wait_seconds", Finite(min=0.001), "How long a request waits for its turn.",
    ),
)  # fmt: skip


def serving_options(command: Command) -> Command:
    """Add the options; their values come as keywords that :func:`split` takes out."""
    for option in reversed(_OPTIONS):
        command = click.option(
            option.flag,
            _keyword(option),
            type=option.kind,
            default=None,
            metavar=_metavar(option),
            help=option.said,
        )(command)
    return command


def split(given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of these options out of ``given``, and return them as fields of a model: those that are there."""
    fields: dict[str, Any] = {}
    for option, value in _taken(given):
        if option.place:
            fields.setdefault(option.place, {})[option.name] = value
        else:
            fields[option.name] = value
    return fields


def _taken(given: dict[str, Any]) -> Iterator[tuple[_Option, Any]]:
    for option in _OPTIONS:
        value = given.pop(_keyword(option), None)
        if value is not None:
            yield option, value


def _keyword(option: _Option) -> str:
    return option.flag.removeprefix("--").replace("-", "_")


def _metavar(option: _Option) -> str | None:
    if isinstance(option.kind, click.Choice):
        return None  # it shows its values
    if option.kind is click.BOOL:
        return "true|false"
    return "N" if isinstance(option.kind, click.IntRange) else "NUMBER"
