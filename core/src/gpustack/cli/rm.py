"""``gpustack rm``."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpustack.cli import complete
from gpustack.cli.output import emit_json, note
from gpustack.cli.target import Target, json_option, run_async, server_options
from gpustack.kit.errors import GPUStackError, NotFound

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.kit.process import ProcessId
    from gpustack.schemas import ModelInstancePublic

#: Seconds that engines may take to end before we stop waiting; they are killed long before.
PATIENCE = 15.0
#: Seconds without the server after which nobody waits for it to tell more.
_SERVER_PATIENCE = 30.0
#: Seconds that an ending may take before it is explained.
_AT_ONCE = 1.5


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=complete.models)
@click.option("--force", is_flag=True, help="Cut requests in flight off.")
@click.option("--no-wait", is_flag=True, help="Return without waiting for engines to end.")
@server_options
@json_option
def command(names: tuple[str, ...], force: bool, no_wait: bool, target: Target, as_json: bool) -> int:
    """Stop serving models.

    Forgets the models and has their engines ended, after the requests in flight; files stay. Waits for that. Ctrl-C
    ends the waiting. Names that do not exist are told, and the others removed.
    """
    connection = target.connection(changes=True)
    # Read before anything is deleted: afterwards nobody could tell whose the processes were.
    here = _engines_here(connection.data_dir)
    removed, missing, drained = run_async(
        connection, lambda client: _remove(client, names, force=force, wait=not no_wait, quiet=as_json)
    )
    ours = [here[each.id] for instances in removed.values() for each in instances if each.id in here]
    if not no_wait:
        asyncio.run(_wait(ours))
    # Elsewhere, an instance that was not cut off is there as long as its engine.
    ending = _ending(removed, here, unseen=force or not drained)
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
    client: Client, names: tuple[str, ...], *, force: bool, wait: bool, quiet: bool
) -> tuple[dict[str, list[ModelInstancePublic]], list[tuple[str, str]], bool]:
    """Return the instances each removed model had, the names there were none of with the line to say, and whether
    the server has seen the end of all instances.
    """
    from gpustack.cli.names import model_named

    removed: dict[str, list[ModelInstancePublic]] = {}
    missing: list[tuple[str, str]] = []
    for name in dict.fromkeys(names):
        try:
            model = await model_named(client, name)
            instances = await client.instances.list_all(model_id=model.id)
            await client.models.delete(model.id, force=force)
        except NotFound as error:
            if not (instances := await _left_of(client, name, force=force)):
                missing.append((name, error.message))
                continue
        removed[name] = instances
    placed = {each.id for instances in removed.values() for each in instances if each.worker_id is not None}
    if wait and placed:
        try:
            await _drained(client, placed, quiet=quiet)
        except GPUStackError as error:
            note(f"They are ending, which cannot be watched any more: {error}")
    return removed, missing, not placed


async def _left_of(client: Client, name: str, *, force: bool) -> list[ModelInstancePublic]:
    """Return the instances that drain though their model is gone already; ``force`` has them end at once."""
    instances = await client.instances.list_all()
    left = [each for each in instances if each.model_name == name and each.draining_since is not None]
    for each in left:
        if force:
            with suppress(NotFound):
                await client.instances.delete(each.id, force=True)
        else:
            note(f"{name} is removed already; {each.name} is draining.")
    return left


async def _drained(client: Client, left: set[int], *, quiet: bool) -> None:
    """Return when the instances are gone, and ``left`` is empty; after a moment, tell which of them still answer requests."""
    from gpustack.schemas import EventType, ModelInstancePublic

    present: dict[int, str] = {}
    telling = asyncio.create_task(_tell(left, present), name="rm: what is waited for") if not quiet else None
    try:
        async with aclosing(client.watch("/v2/model-instances", patience=_SERVER_PATIENCE)) as events:
            async for event in events:
                if event.type is EventType.HEARTBEAT:
                    left.intersection_update(present)
                elif event.type is EventType.DELETED:
                    left.discard(event.id)
                elif event.id in left:
                    present[event.id] = ModelInstancePublic.model_validate(event.data).name
                    continue
                if not left:
                    return
    finally:
        if telling is not None:
            telling.cancel()


async def _tell(left: set[int], names: dict[int, str]) -> None:
    await asyncio.sleep(_AT_ONCE)
    for number in sorted(left & names.keys()):
        note(
            f"{names[number]} ends when the requests in flight are answered; `gpustack rm --force` cuts them off."
        )


async def _wait(engines: list[ProcessId]) -> None:
    """Return when all have ended, or patience has."""
    from gpustack.kit.process import wait_gone

    gone = [asyncio.create_task(wait_gone(who)) for who in engines]
    if gone:
        await asyncio.wait(gone, timeout=PATIENCE)


def _ending(
    removed: dict[str, list[ModelInstancePublic]], here: dict[int, ProcessId], *, unseen: bool
) -> list[str]:
    """Return the models with an engine that still runs; ``unseen``: or may run on another machine."""
    from gpustack.kit.process import is_running

    def runs(instance: ModelInstancePublic) -> bool:
        if instance.id in here:
            return is_running(here[instance.id])
        return unseen and instance.pid is not None

    return [name for name, instances in removed.items() if any(runs(each) for each in instances)]
