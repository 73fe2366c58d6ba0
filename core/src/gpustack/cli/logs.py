"""``gpustack logs``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from gpustack.cli import complete
from gpustack.cli.output import note
from gpustack.cli.target import Target, server_options
from gpustack.kit.errors import Conflict, GPUStackError, NotFound

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import ModelInstancePublic

#: States of an instance whose engine is still to be started.
_BEFORE_A_LOG = ("pending", "analyzing", "scheduled", "initializing", "downloading", "starting")
#: Seconds between two looks whether there is a log.
_POLL = 0.5


@click.command("logs")
@click.argument("name", shell_complete=complete.models_and_instances)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written later, until Ctrl-C.")
@click.option(
    "--tail",
    type=click.IntRange(-1),
    default=-1,
    metavar="N",
    help="Begin with the last N lines. [default: all]",
)
@click.option(
    "--member",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Of a copy over several workers, which member; 0 leads.",
)
@click.option("--previous", "-p", is_flag=True, help="The log of the start before this one.")
@server_options
def command(name: str, follow: bool, tail: int, member: int, previous: bool, target: Target) -> int:
    """Show the log of an engine.

    NAME is an instance, or a model; with several instances each line begins with its instance's name.
    """
    if previous and follow:
        raise click.UsageError("--previous shows a log that has ended; leave --follow out")
    wish = _Wish(follow=follow, tail=tail, previous=previous, member=member)
    return target.ask(lambda client: _show(client, name, wish))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What of a log is to be shown."""

    follow: bool
    tail: int
    previous: bool
    member: int = 0


async def _show(client: Client, name: str, wish: _Wish) -> int:
    instances = await _find(client, name)
    if len(instances) == 1:
        async for chunk in _log(client, instances[0], wish):
            _write(chunk)
        return 0
    width = max(len(each.name) for each in instances)
    results: list[bool] = []
    if wish.follow:
        shown = (_prefixed(client, each, width, wish) for each in instances)
        results = list(await asyncio.gather(*shown))
    else:
        # One after the other: mixed up by chance they would tell no order anyway.
        for each in instances:
            results.append(await _prefixed(client, each, width, wish))
    return 0 if any(results) else 1


async def _find(client: Client, name: str) -> list[ModelInstancePublic]:
    """Return the instance called ``name``, or all those of the model of that name."""
    found = await client.instances.list_all(search=name)
    if exact := [each for each in found if each.name == name]:
        return exact
    try:
        model = await client.models.by_name(name)
    except NotFound:
        raise NotFound(f"there is no instance and no model {name!r}; see `gpustack ps`") from None
    instances = await client.instances.list_all(model_id=model.id, sort_by="name")
    if not instances:
        raise NotFound(f"model {name} has no instances; see `gpustack ls`")
    return instances


async def _log(client: Client, instance: ModelInstancePublic, wish: _Wish) -> AsyncIterator[bytes]:
    """Yield the log. Who follows one that is not there yet waits for the engine to be started."""
    told = False
    while True:
        try:
            log = client.logs(
                instance.id, tail=wish.tail, follow=wish.follow, previous=wish.previous, member=wish.member
            )
            async for chunk in log:
                yield chunk
            return
        except (Conflict, NotFound):
            # It has no worker yet, or one that has not heard of it.
            if not wish.follow or (await client.instances.get(instance.id)).state not in _BEFORE_A_LOG:
                raise
        if not told:
            note(f"{instance.name} has no log yet; waiting for its engine to start.")
            told = True
        await asyncio.sleep(_POLL)


async def _prefixed(client: Client, instance: ModelInstancePublic, width: int, wish: _Wish) -> bool:
    """Show one log with its name before each line; tell whether that was possible."""
    from gpustack.client.watch import lines

    prefix = f"{instance.name:<{width}} | ".encode()
    try:
        async for line in lines(_log(client, instance, wish)):
            _write(prefix + line + b"\n")
    except GPUStackError as error:
        note(f"{instance.name}: {error}")
        return False
    return True


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
