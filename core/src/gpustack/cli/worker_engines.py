"""Engines on workers: installed and removed there through the server, and how far that is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from gpustack.cli.engines import extras_of, named
from gpustack.cli.names import meant
from gpustack.cli.output import age, clean, emit_json, emit_table, first_line, note
from gpustack.cli.target import Target
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import NotFound
from gpustack.kit.text import human_bytes

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import Event, WorkerEnginePublic, WorkerPublic

#: What stands for every worker that has the backend.
ALL = "all"
#: States in which a worker has nothing to do.
_RESTING = ("installed", "error")


def install_there(
    target: Target, text: str, packages: Sequence[str], worker: str, *, wait: bool, as_json: bool
) -> int:
    """Have a worker, or all, install an engine; return the exit status, 1 when one of them cannot."""
    name, version = named(text)
    return target.ask(
        lambda client: _install(client, (name, version, packages), worker, wait, as_json), changes=True
    )


async def _install(
    client: Client, what: tuple[str, str, Sequence[str]], worker: str, wait: bool, as_json: bool
) -> int:
    from pydantic import ValidationError

    from gpustack.schemas import WorkerEngineCreate

    backend, version, packages = what
    workers = await client.workers.list_all()
    number = None if worker == ALL else _number(workers, worker)
    try:
        wanted = WorkerEngineCreate(
            backend=backend, version=version, packages=list(packages), worker_id=number
        )
    except ValidationError as error:
        raise WrongUsage(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    asked = await client.worker_engines.install(wanted)
    ended = await _follow(client, asked, _names(workers), quiet=as_json) if wait else asked
    return _answer(ended, _names(workers), as_json, waited=wait)


def remove_there(target: Target, text: str, packages: Sequence[str], worker: str, *, as_json: bool) -> int:
    """Have a worker, or all, take an engine away; return the exit status, 1 when one of them cannot."""
    name, version = named(text)
    if not version:
        raise WrongUsage(f"which version? name one as {name}==VERSION; `gpustack backends list` has them")
    return target.ask(
        lambda client: _remove(client, (name, version, packages), worker, as_json), changes=True
    )


async def _remove(client: Client, what: tuple[str, str, Sequence[str]], worker: str, as_json: bool) -> int:
    backend, version, packages = what
    workers = await client.workers.list_all()
    number = None if worker == ALL else _number(workers, worker)
    extras = extras_of(packages)
    rows = [
        row
        for row in await client.worker_engines.list_all(worker_id=number, backend=backend)
        if (row.version, tuple(row.packages)) == (version, extras)
    ]
    if not rows:
        raise NotFound(f"{backend} {version} is not on {'any worker' if worker == ALL else worker}")
    asked = [await client.worker_engines.remove(row.id) for row in rows]
    left = await _follow(client, asked, _names(workers), quiet=as_json)
    if as_json:
        emit_json([row.model_dump(mode="json") for row in left])
        return 1 if left else 0
    gone = {row.id for row in asked} - {row.id for row in left}
    for row in asked:
        if row.id in gone:
            click.echo(f"Removed {row.name.title} from {_names(workers).get(row.worker_id, row.worker_id)}.")
    for row in left:
        note(f"{_where(row, _names(workers))}: {first_line(row.state_message)}")
    return 1 if left else 0


async def _follow(
    client: Client,
    asked: Sequence[WorkerEnginePublic],
    names: dict[int, str],
    *,
    quiet: bool,
) -> list[WorkerEnginePublic]:
    """Show how far each is until all rest; return them as they are then, without those that are gone."""
    from gpustack.schemas import WorkerEnginePublic

    open_ = {row.id: row for row in asked}
    ended: dict[int, WorkerEnginePublic] = {}
    began, said = time.monotonic(), dict[int, tuple[str, str]]()
    whole: set[int] | None = set()
    async with aclosing(client.watch(client.worker_engines.path)) as events:
        async for event in events:
            if event.type.name == "HEARTBEAT":
                for number in set(open_) - (whole or set()) if whole is not None else set():
                    del open_[number]  # it was gone before we looked
                whole = None
            elif event.id in open_:
                if whole is not None:
                    whole.add(event.id)
                if _is_gone(event):
                    del open_[event.id]
                else:
                    row = WorkerEnginePublic.model_validate(event.data)
                    _tell(row, names, said, began, quiet=quiet)
                    if row.request >= open_[event.id].request and row.state in _RESTING:
                        ended[row.id] = row
                        del open_[event.id]
            if not open_:
                break
    return [ended[row.id] for row in asked if row.id in ended]


def _is_gone(event: Event) -> bool:
    return event.type.name == "DELETED"


def _tell(
    row: WorkerEnginePublic,
    names: dict[int, str],
    said: dict[int, tuple[str, str]],
    began: float,
    *,
    quiet: bool,
) -> None:
    line = (str(row.state), first_line(row.state_message))
    if quiet or said.get(row.id) == line or line == ("installing", "begins"):
        return
    said[row.id] = line
    words = f"{line[0]}: {line[1]}" if line[1] else line[0]
    note(f"{time.monotonic() - began:6.1f} s  {clean(_where(row, names))}  {clean(words)}")


def _where(row: WorkerEnginePublic, names: dict[int, str]) -> str:
    return names.get(row.worker_id, f"worker {row.worker_id}")


def _answer(rows: Sequence[WorkerEnginePublic], names: dict[int, str], as_json: bool, *, waited: bool) -> int:
    failed = [row for row in rows if row.state == "error"]
    if as_json:
        emit_json([{**row.model_dump(mode="json"), "worker_name": _where(row, names)} for row in rows])
    elif not waited:
        for row in rows:
            click.echo(
                f"{_where(row, names)} installs {row.name.title}; `gpustack backends list` shows how far it is."
            )
    else:
        for row in rows:
            if row.state != "error":
                click.echo(f"{row.name.title} is installed on {_where(row, names)}.")
        for row in failed:
            note(f"{_where(row, names)}: {first_line(row.state_message)}")
    return 1 if failed else 0


def _names(workers: Iterable[WorkerPublic]) -> dict[int, str]:
    return {worker.id: worker.name for worker in workers}


def _number(workers: Sequence[WorkerPublic], name: str) -> int:
    for worker in workers:
        if worker.name == name:
            return worker.id
    raise NotFound(
        f"there is no worker {name!r}{meant(name, [worker.name for worker in workers])}; see `gpustack workers`"
    )


async def engines_of_workers(client: Client) -> tuple[list[WorkerEnginePublic], dict[int, str]]:
    """Return what workers have and are to have, with the workers' names; nothing from a server older than that."""
    try:
        rows = await client.worker_engines.list_all(sort_by="backend,version,worker_id")
    except NotFound:
        return [], {}
    return rows, _names(await client.workers.list_all()) if rows else {}


def emit_engines(rows: Sequence[WorkerEnginePublic], names: dict[int, str]) -> None:
    """Print a table of environments on workers."""
    emit_table(
        ["ENGINE", "WORKER", "STATE", "SIZE", "LAST USED", "MESSAGE"],
        (
            (
                row.name.title,
                _where(row, names),
                row.state,
                human_bytes(row.disk) if row.disk else "-",
                age(row.last_used_at),
                first_line(row.state_message),
            )
            for row in rows
        ),
        empty="",
    )


def documents(
    rows: Sequence[WorkerEnginePublic], names: dict[int, str], backend: str
) -> list[dict[str, Any]]:
    """Return the rows of one backend for ``--json``."""
    return [
        {**row.model_dump(mode="json"), "worker_name": _where(row, names)}
        for row in rows
        if row.backend == backend
    ]
