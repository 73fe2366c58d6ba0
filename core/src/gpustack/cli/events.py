"""``gpustack events``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from gpustack.cli import complete
from gpustack.cli.output import clean, coloured, emit_documents, note
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.errors import NotFound

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import InstanceEventPublic

#: Seconds without the server after which following ends.
_PATIENCE = 60.0
_COLOURS = {
    "error": "red",
    "unreachable": "red",
    "restarted": "yellow",
    "running": "green",
    "removed": "blue",
}


class Lines:
    """Prints events a line each, in columns that only grow."""

    def __init__(self, *, full: bool = False, indent: str = "") -> None:
        self._full = full
        self._indent = indent
        self._widths = [0, 0, 0]

    def show(self, events: Iterable[InstanceEventPublic]) -> None:
        """Print ``events`` in their order."""
        rows = [(each, self._cells(each)) for each in events]
        for _, cells in rows:
            self._widths = [max(pair) for pair in zip(self._widths, map(len, cells), strict=True)]
        for event, cells in rows:
            self._print(event, cells)

    def _cells(self, event: InstanceEventPublic) -> list[str]:
        what = f"restarted ({event.restart_count})" if event.what == "restarted" else event.what
        return [clean(each) for each in (event.instance_name, event.worker_name or "-", what)]

    def _print(self, event: InstanceEventPublic, cells: list[str]) -> None:
        padded = [f"{cell:<{width}}" for cell, width in zip(cells, self._widths, strict=True)]
        if coloured() and event.what in _COLOURS:
            padded[2] = click.style(padded[2], fg=_COLOURS[event.what])
        when = event.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        first, _, rest = event.message.partition("\n")
        click.echo("  ".join([f"{self._indent}{when}", *padded, clean(first)]).rstrip())
        if self._full and rest:
            for line in rest.split("\n"):
                click.echo(f"{self._indent}    {clean(line, keep=chr(9))}")


class Documents:
    """Prints events as one JSON document a line."""

    def show(self, events: Iterable[InstanceEventPublic]) -> None:
        """Print ``events`` in their order."""
        for event in events:
            click.echo(json.dumps(event.model_dump(mode="json"), ensure_ascii=False))


@click.command("events")
@click.argument("model", shell_complete=complete.models_and_instances)
@click.option("--full", is_flag=True, help="Show all lines of each message, with an engine's last words.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens later, until Ctrl-C.")
@click.option("--instance", default="", metavar="NAME", help="Only what happened to this copy.")
@click.option(
    "--tail",
    type=click.IntRange(0, 1000),
    default=50,
    show_default=True,
    metavar="N",
    help="Begin with the last N.",
)
@server_options
@json_option
def command(
    model: str, full: bool, follow: bool, instance: str, tail: int, target: Target, as_json: bool
) -> None:
    """Show what happened to a model, such as why it was restarted.

    MODEL is a model, also one that is gone, or one of its copies. GPUStack remembers 30 days. With --follow, --json
    prints one document a line.
    """
    if follow:
        target.ask(
            lambda client: _follow(
                client, model, instance, tail, Documents() if as_json else Lines(full=full)
            )
        )
        return
    events = target.ask(lambda client: _last(client, model, instance, tail))
    if as_json:
        emit_documents(events)
    else:
        Lines(full=full).show(events)
        if not events:
            note(f"Nothing has happened to {model} in the time that is remembered.")


async def _filters(client: Client, name: str, instance: str) -> dict[str, Any]:
    """Return the query for ``name``: a model, whether it is there or only remembered, or an instance."""
    if instance:
        return {"model_name": name, "instance_name": instance}
    for field in ("model_name", "instance_name"):
        filters: dict[str, Any] = {field: name}
        if (await client.instance_events.list(per_page=1, **filters)).items:
            return filters
    from gpustack.cli.names import model_named

    await model_named(client, name)
    return {"model_name": name}


async def _last(client: Client, name: str, instance: str, tail: int) -> list[InstanceEventPublic]:
    filters = await _filters(client, name, instance)
    if tail == 0:
        return []
    events = (await client.instance_events.list(per_page=tail, **filters)).items
    if instance and not events:
        raise NotFound(
            f"nothing is remembered of a copy {instance!r} of model {name!r}; see `gpustack events {name}`"
        )
    return events[::-1]


async def _follow(client: Client, name: str, instance: str, tail: int, printer: Lines | Documents) -> None:
    """Print the last ones and then each as it happens; ends only by an error or Ctrl-C."""
    from gpustack.schemas import EventType, InstanceEventPublic

    before: list[InstanceEventPublic] = []
    live = False
    filters = await _filters(client, name, instance)
    watch = client.watch("/v2/model-instance-events", filters, patience=_PATIENCE)
    async with aclosing(watch) as told:
        async for each in told:
            if each.type is EventType.HEARTBEAT and not live:
                live = True
                printer.show(before[-tail:] if tail else [])
            elif each.type is EventType.CREATED:
                event = InstanceEventPublic.model_validate(each.data)
                if live:
                    printer.show([event])
                else:
                    before.append(event)
