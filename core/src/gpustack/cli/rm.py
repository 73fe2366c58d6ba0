"""``gpustack rm``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpustack.cli.output import emit_json, note
from gpustack.cli.target import Target, json_option, run_async, server_options
from gpustack.kit.errors import NotFound

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.kit.process import ProcessId
    from gpustack.schemas import ModelInstancePublic

#: Seconds that engines may take to end before we stop waiting; they are killed long before.
PATIENCE = 15.0


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--no-wait", is_flag=True, help="Return without waiting for engines to end.")
@server_options
@json_option
def command(names: tuple[str, ...], no_wait: bool, target: Target, as_json: bool) -> int:
    """Stop serving models.

    Forgets the models and has their engines ended; files stay. Waits for engines on this machine, 15 seconds at
    most. Names that do not exist are told, and the others removed.
    """
    connection = target.connection(changes=True)
    # Read before anything is deleted: afterwards nobody could tell whose the processes were.
    here = _engines_here(connection.data_dir)
    removed, missing = run_async(connection, lambda client: _remove(client, names))
    ours = [here[each.id] for instances in removed.values() for each in instances if each.id in here]
    if not no_wait:
        asyncio.run(_wait(ours))
    ending = _ending(removed, here)
    if as_json:
        emit_json(
            {"removed": list(removed), "ending": ending, "missing": [name for name, _ in missing]},
        )
    else:
        for name in removed:
            click.echo(f"Removed {name}{'; its engines are ending' if name in ending else ''}.")
    for _, line in missing:
        note(f"Error: {line}")
    return 1 if missing else 0


def _engines_here(data_dir: Path | None) -> dict[int, ProcessId]:
    """Return the processes of the engines that run on this machine, by instance."""
    if data_dir is None:
        return {}
    from gpustack.client.local import run_dir
    from gpustack.worker.runners.records import find_process, read_records

    records = read_records(run_dir(data_dir))
    found = ((record.instance_id, find_process(run_dir(data_dir), record)) for record in records)
    return {number: who for number, who in found if who is not None}


async def _remove(
    client: Client, names: tuple[str, ...]
) -> tuple[dict[str, list[ModelInstancePublic]], list[tuple[str, str]]]:
    """Return the instances each removed model had, and the names there were none of with the line to say."""
    removed: dict[str, list[ModelInstancePublic]] = {}
    missing: list[tuple[str, str]] = []
    for name in dict.fromkeys(names):
        try:
            model = await client.models.by_name(name)
            instances = await client.instances.list_all(model_id=model.id)
            await client.models.delete(model.id)
        except NotFound as error:
            missing.append((name, error.message))
        else:
            removed[name] = instances
    return removed, missing


async def _wait(engines: list[ProcessId]) -> None:
    """Return when all have ended, or patience has."""
    from gpustack.kit.process import wait_gone

    gone = [asyncio.create_task(wait_gone(who)) for who in engines]
    if gone:
        await asyncio.wait(gone, timeout=PATIENCE)


def _ending(removed: dict[str, list[ModelInstancePublic]], here: dict[int, ProcessId]) -> list[str]:
    """Return the models with an engine that still runs, or of which we cannot know."""
    from gpustack.kit.process import is_running

    def runs(instance: ModelInstancePublic) -> bool:
        return is_running(here[instance.id]) if instance.id in here else instance.pid is not None

    return [name for name, instances in removed.items() if any(runs(each) for each in instances)]
