"""``gpustack backends``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpustack.cli import backend_rows
from gpustack.cli.output import emit_json, emit_table, note
from gpustack.cli.target import Target, data_dir_option, json_option, server_options

if TYPE_CHECKING:
    from gpustack.cli.engines import Places
    from gpustack.schemas import InferenceBackendPublic

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


@command.command("install")
@click.argument("backend", metavar="BACKEND[@VERSION]")
@engine_options
@data_dir_option
@json_option
def install_engine(backend: str, bin_dir: str, pipx_path: str, data_dir: str, as_json: bool) -> None:
    """Install an engine on this machine, in its default version unless one is named.

    Models then start without waiting for it. Works while GPUStack runs and before its first start.
    """
    from gpustack.cli.engines import install

    where = _places(bin_dir, pipx_path, data_dir)
    said: list[str] = []
    began = time.monotonic()

    def say(line: str) -> None:
        said.append(line)
        note(f"{time.monotonic() - began:6.1f} s  {line}")

    name, version, path = asyncio.run(install(where, backend, say))
    if as_json:
        emit_json({"backend": name, "version": version, "path": str(path), "installed_now": bool(said)})
    elif said:
        click.echo(f"{name} {version} is installed: {path}")
    else:
        click.echo(f"{name} {version} was installed before: {path}")


@command.command("remove")
@click.argument("backend", metavar="BACKEND@VERSION")
@engine_options
@data_dir_option
@json_option
def remove_engine(backend: str, bin_dir: str, pipx_path: str, data_dir: str, as_json: bool) -> None:
    """Remove an engine from this machine.

    One that runs is not removed. A model that needs it later has it installed again.
    """
    from gpustack.cli.engines import remove

    where = _places(bin_dir, pipx_path, data_dir)
    name, version = asyncio.run(remove(where, backend, note))
    if as_json:
        emit_json({"backend": name, "version": version, "bin_dir": str(where.bin_dir)})
    else:
        click.echo(f"Removed {name} {version} from {where.bin_dir}.")


def _places(bin_dir: str, pipx_path: str, data_dir: str) -> Places:
    from gpustack.cli.engines import places

    ctx = click.get_current_context()
    given = {"bin_dir": bin_dir, "pipx_path": pipx_path, "data_dir": data_dir}
    if ctx.parent is not None and ctx.parent.command is command:
        # `gpustack backends --bin-dir PATH list` means the same as `gpustack backends list --bin-dir PATH`.
        given = {name: value or str(ctx.parent.params.get(name) or "") for name, value in given.items()}
    return places({name: value for name, value in given.items() if value})


def _list(target: Target, where: Places, as_json: bool) -> None:
    backends, asked = _known(target)
    here = where.installer().installed()
    if as_json:
        emit_json(
            [
                {
                    **each.model_dump(mode="json"),
                    "installed_here": here.get(each.backend_name, []),
                    "bin_dir": str(where.bin_dir),
                }
                for each in backends
            ]
        )
        return
    emit_table(
        ["NAME", "DEFAULT VERSION", "PLUGIN", "INSTALLED HERE", *(["ON WORKERS"] if asked else [])],
        ([*_row(each, here), *([_elsewhere(each)] if asked else [])] for each in backends),
        empty="No backend is installed; `pip install gpustack-backends` brings ours.",
    )
    if backends:
        note(f"The engines of this machine are in {where.bin_dir}.")


def _known(target: Target) -> tuple[list[InferenceBackendPublic], bool]:
    """Return the server's backends and True, or those of this machine when no server was named and none runs."""
    from gpustack.cli.engines import known_here
    from gpustack.client.local import NothingRuns

    try:
        return target.ask(lambda client: client.backends.list_all()), True
    except NothingRuns:
        return known_here(), False


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
