"""``gpustack backends``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from gpustack.cli import backend_rows, complete
from gpustack.cli.output import age, emit_json, emit_table, note
from gpustack.cli.target import Target, data_dir_option, json_option, server_options
from gpustack.kit.text import human_bytes, plural

if TYPE_CHECKING:
    from gpustack.cli.engines import Places
    from gpustack.client import Client
    from gpustack.schemas import InferenceBackendPublic, WorkerEnginePublic
    from gpustack.worker.artifacts.receipts import Held

Command = TypeVar("Command", bound=Callable[..., Any])


def engine_options(command: Command) -> Command:
    """Add the options that say where engines are, as `gpustack start` has them."""
    pipx = click.option(
        "--pipx-path", default="", metavar="PATH", help="The pipx to use. [default: GPUStack's own]"
    )
    bin_dir = click.option(
        "--bin-dir",
        default="",
        metavar="PATH",
        help="Where engines are. [default: that of the GPUStack that runs here, or as for `gpustack start`]",
    )
    return bin_dir(pipx(command))


@click.group("backends", invoke_without_command=True)
@engine_options
@server_options
@json_option
@click.pass_context
def command(ctx: click.Context, bin_dir: str, pipx_path: str, target: Target, as_json: bool) -> None:
    """List, describe and remove inference backends, and install or remove their engines here."""
    if ctx.invoked_subcommand is None:
        _list(target, _places(bin_dir, pipx_path, target.data_dir), as_json)


@command.command("list")
@engine_options
@server_options
@json_option
def list_backends(bin_dir: str, pipx_path: str, target: Target, as_json: bool) -> None:
    """List inference backends with the versions that are installed, here and on the workers."""
    _list(target, _places(bin_dir, pipx_path, target.data_dir), as_json)


command.add_command(backend_rows.apply)
command.add_command(backend_rows.show)
command.add_command(backend_rows.delete)


_worker = click.option(
    "--worker",
    default="",
    metavar="NAME",
    shell_complete=complete.workers,
    help="The worker that does it, through the server; `all` is every worker that has the backend. [default: this machine]",
)
_packages = click.option(
    "--package",
    "packages",
    multiple=True,
    metavar="REQUIREMENT",
    help="Package beside the engine, as models name them with --backend-package; may be repeated.",
)


@command.command("install")
@click.argument("backend", metavar="BACKEND[==VERSION]")
@_packages
@_worker
@click.option(
    "--wait/--no-wait", default=True, help="With --worker: wait until it is there, or return at once."
)
@engine_options
@server_options
@json_option
def install_engine(
    backend: str,
    packages: tuple[str, ...],
    worker: str,
    wait: bool,
    bin_dir: str,
    pipx_path: str,
    target: Target,
    as_json: bool,
) -> int:
    """Install an engine on this machine or on a worker, in its default version unless one is named.

    Models then start without waiting for it. Here it works while GPUStack runs and before its first start.
    BACKEND@VERSION means the same. Ctrl-C ends the waiting for a worker, not its work.
    """
    from gpustack.cli.engines import install

    if worker:
        from gpustack.cli.worker_engines import install_there

        return install_there(target, backend, packages, worker, wait=wait, as_json=as_json)
    _only_here(target)
    where = _places(bin_dir, pipx_path, target.data_dir)
    said: list[str] = []
    began = time.monotonic()

    def say(line: str) -> None:
        said.append(line)
        note(f"{time.monotonic() - began:6.1f} s  {line}")

    name, version, path = asyncio.run(install(where, backend, say, packages))
    if as_json:
        emit_json({"backend": name, "version": version, "path": str(path), "installed_now": bool(said)})
    elif said:
        click.echo(f"{name} {version} is installed: {path}")
    else:
        click.echo(f"{name} {version} was installed before: {path}")
    return 0


@command.command("remove")
@click.argument("backend", metavar="BACKEND==VERSION")
@_packages
@_worker
@engine_options
@server_options
@json_option
def remove_engine(
    backend: str,
    packages: tuple[str, ...],
    worker: str,
    bin_dir: str,
    pipx_path: str,
    target: Target,
    as_json: bool,
) -> int:
    """Remove an engine from this machine or from a worker.

    One that runs is not removed. A model that needs it later has it installed again.
    """
    from gpustack.cli.engines import remove

    if worker:
        from gpustack.cli.worker_engines import remove_there

        return remove_there(target, backend, packages, worker, as_json=as_json)
    _only_here(target)
    where = _places(bin_dir, pipx_path, target.data_dir)
    name, version = asyncio.run(remove(where, backend, note, packages))
    if as_json:
        emit_json({"backend": name, "version": version, "bin_dir": str(where.bin_dir)})
    else:
        click.echo(f"Removed {name} {version} from {where.bin_dir}.")
    return 0


@command.command("export")
@click.argument("backend", metavar="BACKEND[==VERSION]")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_packages
@engine_options
@data_dir_option
@json_option
def export_engine(
    backend: str,
    file: Path,
    packages: tuple[str, ...],
    bin_dir: str,
    pipx_path: str,
    data_dir: str,
    as_json: bool,
) -> None:
    """Write FILE with all wheels of an engine's environment, for machines without a network.

    The engine is installed here first. FILE serves machines with the same system, processor and Python.
    """
    from gpustack.cli.engines import export_archive

    where = _places(bin_dir, pipx_path, data_dir)
    manifest = asyncio.run(export_archive(where, backend, file.absolute(), note, packages))
    size = file.stat().st_size
    if as_json:
        emit_json(
            {
                "backend": manifest.backend,
                "version": manifest.version,
                "packages": manifest.packages,
                "file": str(file.absolute()),
                "size": size,
                "wheels": [each.file for each in manifest.wheels],
            }
        )
    else:
        count = plural(len(manifest.wheels), "wheel")
        click.echo(
            f"{file} has {manifest.backend} {manifest.version}: {count}, {human_bytes(size)}, for {manifest.system} "
            f"{manifest.machine} with Python {manifest.python}."
        )


@command.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@engine_options
@data_dir_option
@json_option
def import_engine(file: Path, bin_dir: str, pipx_path: str, data_dir: str, as_json: bool) -> None:
    """Install an engine on this machine from FILE, which `gpustack backends export` wrote; no network is needed.

    The wheels are kept below the data directory: the environment is made anew from them when it has to be.
    """
    from gpustack.cli.engines import import_archive

    where = _places(bin_dir, pipx_path, data_dir)
    manifest, path = asyncio.run(import_archive(where, file.absolute(), note))
    if as_json:
        emit_json({"backend": manifest.backend, "version": manifest.version, "path": str(path)})
    else:
        click.echo(f"{manifest.backend} {manifest.version} is installed: {path}")


def _only_here(target: Target) -> None:
    ctx = click.get_current_context()
    if ctx.get_parameter_source("server") is ParameterSource.COMMANDLINE:
        raise click.UsageError(
            f"--server {target.server} is for --worker NAME; without it, this machine is meant"
        )


def _places(bin_dir: str, pipx_path: str, data_dir: str) -> Places:
    from gpustack.cli.engines import places

    ctx = click.get_current_context()
    given = {"bin_dir": bin_dir, "pipx_path": pipx_path, "data_dir": data_dir}
    if ctx.parent is not None and ctx.parent.command is command:
        # `gpustack backends --bin-dir PATH list` means the same as `gpustack backends list --bin-dir PATH`.
        given = {name: value or str(ctx.parent.params.get(name) or "") for name, value in given.items()}
    return places({name: value for name, value in given.items() if value})


def _list(target: Target, where: Places, as_json: bool) -> None:
    from gpustack.cli.worker_engines import documents, emit_engines

    backends, rows, names = _known(target)
    held = where.installer().environments()
    here: dict[str, list[str]] = {}
    for each in held:
        if not each.receipt.extras:
            here.setdefault(each.receipt.backend, []).append(each.receipt.version)
    if as_json:
        emit_json(
            [
                {
                    **each.model_dump(mode="json"),
                    "installed_here": here.get(each.backend_name, []),
                    "environments_here": [
                        _held(one) for one in held if one.receipt.backend == each.backend_name
                    ],
                    "engines": documents(rows or [], names, each.backend_name),
                    "bin_dir": str(where.bin_dir),
                }
                for each in backends
            ]
        )
        return
    emit_table(
        [
            "NAME",
            "DEFAULT VERSION",
            "PLUGIN",
            "INSTALLED HERE",
            *(["ON WORKERS"] if rows is not None else []),
        ],
        ([*_row(each, here), *([_elsewhere(each)] if rows is not None else [])] for each in backends),
        empty="No backend is installed; `pip install gpustack-backends` brings ours.",
    )
    if rows:
        click.echo()
        emit_engines(rows, names)
    elif held:
        click.echo()
        emit_table(
            ["ENGINE HERE", "SIZE", "LAST USED"],
            (
                (
                    _title(each),
                    human_bytes(each.receipt.disk) if each.receipt.disk else "-",
                    age(each.last_used),
                )
                for each in held
            ),
            empty="",
        )
    if backends:
        note(f"The engines of this machine are in {where.bin_dir}.")


def _title(held: Held) -> str:
    receipt = held.receipt
    extras = f" with {', '.join(receipt.extras)}" if receipt.extras else ""
    return f"{receipt.backend}=={receipt.version}{extras}"


def _held(held: Held) -> dict[str, Any]:
    return {
        "version": held.receipt.version,
        "packages": held.receipt.extras,
        "path": str(held.link),
        "disk": held.receipt.disk,
        "last_used_at": held.last_used.isoformat(timespec="seconds"),
    }


def _known(
    target: Target,
) -> tuple[list[InferenceBackendPublic], list[WorkerEnginePublic] | None, dict[int, str]]:
    """Return the server's backends, what is on its workers, and their names.

    Those of this machine, and None, when no server was named and none runs.
    """
    from gpustack.cli.engines import known_here
    from gpustack.client.local import NothingRuns

    try:
        return target.ask(_of_server)
    except NothingRuns:
        return known_here(), None, {}


async def _of_server(
    client: Client,
) -> tuple[list[InferenceBackendPublic], list[WorkerEnginePublic] | None, dict[int, str]]:
    from gpustack.cli.worker_engines import engines_of_workers

    return await client.backends.list_all(), *await engines_of_workers(client)


def _row(backend: InferenceBackendPublic, here: dict[str, list[str]]) -> tuple[str, ...]:
    return (
        backend.backend_name,
        backend.default_version or "-",
        f"{backend.distribution} {backend.distribution_version}".strip() or "-",
        ", ".join(here.get(backend.backend_name, [])) or "-",
    )


def _elsewhere(backend: InferenceBackendPublic) -> str:
    return (
        "; ".join(
            f"{', '.join(versions)} on {worker}" for worker, versions in backend.installed_versions.items()
        )
        or "-"
    )
