"""``gpustack workers``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from gpustack.cli import complete
from gpustack.cli.output import age, clean, emit_documents, emit_json, emit_table, first_line, note
from gpustack.cli.target import Connection, Target, json_option, server_options
from gpustack.kit.text import human_bytes

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import MemoryStatus, WorkerPublic


@click.group("workers", invoke_without_command=True)
@server_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """List, add, label and remove workers."""
    if ctx.invoked_subcommand is None:
        _list(target, as_json)


@command.command("list")
@server_options
@json_option
def list_workers(target: Target, as_json: bool) -> None:
    """List workers."""
    _list(target, as_json)


def _list(target: Target, as_json: bool) -> None:
    workers, notices = target.ask(_workers)
    for line in notices:
        note(line)
    if as_json:
        emit_documents(workers)
        return
    emit_table(
        [
            "NAME",
            "STATE",
            "ADDRESS",
            "CORES",
            "MEMORY USED",
            "GPUS",
            "ENGINES",
            "VERSION",
            "HEARTBEAT",
            "MESSAGE",
        ],
        (
            (
                each.name,
                each.state,
                f"{each.ip}:{each.port}" if each.port else each.ip,
                each.status.cpu.total or "-",
                _memory(each.status.memory),
                _gpus(each),
                _engines(each),
                each.version,
                age(each.heartbeat_time),
                first_line(each.state_message),
            )
            for each in workers
        ),
        empty="No worker has joined; `gpustack workers join-command` says how one does.",
    )


async def _workers(client: Client) -> tuple[list[WorkerPublic], list[str]]:
    """Return all workers, and what is remarkable of them as a whole."""
    from gpustack.kit.errors import NotFound

    workers = await client.workers.list_all(sort_by="name")
    try:
        return workers, (await client.fleet()).notices
    except NotFound:
        return workers, []  # a server older than that


@command.command("maintenance")
@click.argument("name", shell_complete=complete.workers)
@click.option("--on/--off", "on", required=True, help="Take it out of service, or back into it.")
@server_options
@json_option
def maintenance(name: str, on: bool, target: Target, as_json: bool) -> None:
    """Take a worker out of service, or back.

    It gets no new copies of models. Those that it has serve on until others run on other workers, and then end once
    their requests are answered.
    """
    worker, left = target.ask(lambda client: _maintain(client, name, on=on), changes=True)
    if as_json:
        emit_json(worker.model_dump(mode="json"))
        return
    if not on:
        click.echo(f"Worker {worker.name} is in service again.")
        return
    click.echo(f"Worker {worker.name} is in maintenance.")
    if left:
        note(
            f"{', '.join(left)} serve there until others run elsewhere; `gpustack ps` shows how far that is."
        )


async def _maintain(client: Client, name: str, *, on: bool) -> tuple[WorkerPublic, list[str]]:
    """Return the worker, and the names of the copies that are there still."""
    worker = await _named(client, name)
    changed = await client.set_maintenance(worker.id, on=on)
    copies = await client.instances.list_all(worker_id=worker.id) if on else []
    return changed, sorted(each.name for each in copies)


@command.command("label")
@click.argument("name", shell_complete=complete.workers)
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE | KEY-]...")
@server_options
@json_option
def label(name: str, labels: tuple[str, ...], target: Target, as_json: bool) -> None:
    """Show, set and take away labels of a worker.

    KEY=VALUE sets a label, KEY- takes it away; without either they are shown. Models whose --worker-selector names
    labels run on workers that have all of them. os, arch and worker-name are given by the worker itself.
    """
    from gpustack.cli.names import labels as read

    changes = read("", labels)
    worker = target.ask(lambda client: _label(client, name, changes), changes=bool(changes))
    if as_json:
        emit_json(worker.model_dump(mode="json"))
        return
    for key, value in sorted(worker.labels.items()):
        click.echo(clean(f"{key}={value}"))


async def _label(client: Client, name: str, changes: dict[str, str | None]) -> WorkerPublic:
    from gpustack.kit.errors import InvalidInput
    from gpustack.kit.text import shorten
    from gpustack.schemas.workers import OWN_LABELS

    worker = await _named(client, name)
    if not changes:
        return worker
    if away := next((key for key, value in changes.items() if value is None and key in OWN_LABELS), None):
        raise InvalidInput(f"{away} is a label that the worker gives itself; it cannot be taken away")
    lacking = [key for key, value in changes.items() if value is None and key not in worker.labels]
    if lacking:
        raise InvalidInput(f"worker {worker.name} has no label {shorten(lacking[0], 80)!r} to take away")
    merged = {**worker.labels, **changes}
    return await client.set_labels(
        worker.id, {key: value for key, value in merged.items() if value is not None}
    )


@command.command("remove")
@click.argument("name", shell_complete=complete.workers)
@click.option("--force", is_flag=True, help="Also one that is ready and runs copies of models.")
@server_options
@json_option
def remove_worker(name: str, force: bool, target: Target, as_json: bool) -> None:
    """Remove a worker for good, with the copies of models on it.

    They are placed on others. A worker that still runs joins again: stop it first with `gpustack stop` there.
    """
    worker = target.ask(lambda client: _remove(client, name, force=force), changes=True)
    if as_json:
        emit_json(worker.model_dump(mode="json"))
    else:
        click.echo(f"Removed worker {worker.name}.")


async def _remove(client: Client, name: str, *, force: bool) -> WorkerPublic:
    worker = await _named(client, name)
    if worker.state == "ready" and not force:
        await _spare(client, worker)
    await client.workers.delete(worker.id)
    return worker


async def _named(client: Client, name: str) -> WorkerPublic:
    """Return the worker called ``name``. Raises NotFound with the names that may be meant."""
    from gpustack.cli.names import meant
    from gpustack.kit.errors import NotFound
    from gpustack.kit.text import shorten

    workers = {each.name: each for each in await client.workers.list_all()}
    if name not in workers:
        raise NotFound(
            f"there is no worker {shorten(name, 160)!r}{meant(name, list(workers))}; see `gpustack workers`"
        )
    return workers[name]


async def _spare(client: Client, worker: WorkerPublic) -> None:
    """Raise Conflict when the worker runs copies of models: who removes it ends their engines."""
    from gpustack.kit.errors import Conflict

    copies = sorted(each.name for each in await client.instances.list_all() if worker.id in each.worker_ids)
    if copies:
        named = ", ".join(copies[:3]) + (f" and {len(copies) - 3} more" if len(copies) > 3 else "")
        raise Conflict(
            f"worker {worker.name} is ready and runs {named}; --force removes it all the same and ends them"
        )


@command.command("join-command")
@click.option("--container", is_flag=True, help="Run the worker in a container of GPUStack's own image.")
@server_options
@json_option
def join_command(target: Target, container: bool, as_json: bool) -> None:
    """Print the command that makes another machine a worker of this server.

    It has the token in it, as a variable: typed as a flag it would show in the list of processes.
    """
    here = target.connection()
    if here.data_dir is None:
        url, token, file = here.url, "", Path("token")
    else:
        url, file = _url_for_others(here.data_dir), here.data_dir / "token"
        token = _token(file)
    if container:
        line = _in_container(here, url, token)
    else:
        start = f"gpustack start --server-url {shlex.quote(url)}"
        line = f"GPUSTACK_TOKEN={shlex.quote(token)} {start}" if token else f"{start} --token-file {file}"
    if as_json:
        emit_json({"command": line, "server_url": url, "token": token or None})
        return
    click.echo(line)
    _explain(here, url, file)


def _in_container(here: Connection, url: str, token: str) -> str:
    """Return the command for a container. Raises InvalidInput where the image is not known: on another machine."""
    from gpustack.client.local import running_state
    from gpustack.kit.errors import InvalidInput

    if here.data_dir is None:
        raise InvalidInput("--container is for the server's own machine, which knows its image and token")
    image = running_state(here.data_dir).image
    words = [
        *("docker", "run", "--detach", "--name", "gpustack-worker", "--network", "host"),
        *(
            "--restart",
            "unless-stopped",
            "--stop-timeout",
            "30",
            "--volume",
            "gpustack-worker:/var/lib/gpustack",
        ),
        *("--env", "GPUSTACK_TOKEN", image, "start", "--server-url", url),
    ]
    return f"GPUSTACK_TOKEN={shlex.quote(token)} {shlex.join(words)}"


def _explain(here: Connection, url: str, file: Path) -> None:
    from gpustack.client.transport import is_loopback

    if here.data_dir is None:
        note(
            "The token is on the server's machine, in the file `token` of its data directory: copy it to the new "
            "machine. `gpustack workers join-command` there prints the command with the token in it."
        )
    else:
        note(
            "Run it on the new machine. Your shell's history keeps the line; a copy of "
            f"{file} and --token-file instead of the variable keeps the token out of it."
        )
    if is_loopback(urlsplit(url).hostname or ""):
        note(
            "This address reaches no other machine: start the server with --advertise-address and one that does."
        )


def _url_for_others(data_dir: Path) -> str:
    """Return the server's URL as other machines see it. Raises NotFound where only a worker runs."""
    from gpustack.client.local import running_state
    from gpustack.kit.errors import NotFound

    state = running_state(data_dir)
    if state.children and "server" not in state.children:
        raise NotFound(
            f"this machine is a worker of {state.url}; run `gpustack workers join-command` on the server's machine"
        )
    return state.url


def _token(file: Path) -> str:
    """Return the registration token. Raises Forbidden when it is for another user's eyes, NotFound without one."""
    from gpustack.kit.errors import Forbidden, NotFound

    try:
        return file.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise NotFound(f"there is no {file}; is that the server's data directory?") from error
    except OSError as error:
        raise Forbidden(
            f"{file} cannot be read ({error.strerror}): only the user that runs the server may add workers"
        ) from error


def _memory(memory: MemoryStatus) -> str:
    return f"{human_bytes(memory.used)} of {human_bytes(memory.total)}" if memory.total else "-"


def _gpus(worker: WorkerPublic) -> str:
    counts: dict[str, int] = {}
    for gpu in worker.status.gpu_devices:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    return ", ".join(f"{count}x {name}" for name, count in counts.items()) or "-"


def _engines(worker: WorkerPublic) -> str:
    """Return the installed engines, as in ``llama-cpp 0.3.2 0.3.4, vllm 0.9``."""
    named = [
        f"{name} {' '.join(versions)}" for name, versions in worker.installed_versions.items() if versions
    ]
    return ", ".join(named) or "-"
