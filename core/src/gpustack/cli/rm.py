"""``gpustack rm``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from gpustack.cli.output import emit_json, note
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.errors import NotFound

if TYPE_CHECKING:
    from gpustack.client import Client

#: Seconds between two looks at whether the instances are gone, and until we stop looking.
_POLL, _LIMIT = 0.2, 60.0


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--no-wait", is_flag=True, help="Return before the engines have ended.")
@server_options
@json_option
def command(names: tuple[str, ...], no_wait: bool, target: Target, as_json: bool) -> int:
    """Stop serving models.

    Ends their engines and forgets the models; files stay. Names that do not exist are told, and the others removed.
    """
    removed, missing = target.ask(lambda client: _remove(client, names, wait=not no_wait))
    if as_json:
        emit_json({"removed": removed, "missing": [name for name, _ in missing]})
    else:
        for name in removed:
            click.echo(f"Removed {name}.")
    for _, line in missing:
        note(f"Error: {line}")
    return 1 if missing else 0


async def _remove(
    client: Client, names: tuple[str, ...], *, wait: bool
) -> tuple[list[str], list[tuple[str, str]]]:
    removed: list[str] = []
    missing: list[tuple[str, str]] = []
    numbers: list[int] = []
    for name in dict.fromkeys(names):
        try:
            model = await client.models.by_name(name)
            await client.models.delete(model.id)
        except NotFound as error:
            missing.append((name, error.message))
        else:
            removed.append(name)
            numbers.append(model.id)
    if wait:
        await _gone(client, numbers)
    return removed, missing


async def _gone(client: Client, numbers: list[int]) -> None:
    for number in numbers:
        tries = int(_LIMIT / _POLL)
        while await client.instances.list_all(model_id=number):
            tries -= 1
            if tries <= 0:
                note("Its engines are still ending; `gpustack ps` shows them.")
                return
            await asyncio.sleep(_POLL)
