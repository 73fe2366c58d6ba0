"""``gpustack plugins``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpustack.cli.output import emit_json, emit_table, note
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.errors import GPUStackError

if TYPE_CHECKING:
    from gpustack.cli.plugin_found import Found

_HEADERS = ["NAME", "KIND", "BRINGS", "DISTRIBUTION", "VERSION", "STATE", "REASON"]
_RESTART = "`gpustack restart` makes a running GPUStack see it."


@click.group("plugins", invoke_without_command=True)
@server_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """List plugins, install, remove and check them, and begin a new one."""
    if ctx.invoked_subcommand is None:
        _list(target, as_json)


@command.command("list")
@server_options
@json_option
def list_plugins(target: Target, as_json: bool) -> None:
    """List the plugins of the server with what they bring, those that do not work too, and why.

    When no server is named and none runs, these are the plugins of this machine.
    """
    _list(target, as_json)


@command.command("install")
@click.argument("what", metavar="NAME[==VERSION]|PATH")
@click.option(
    "--editable",
    "-e",
    is_flag=True,
    help="PATH is the folder of a project that is worked on: what is changed there is used as it is.",
)
@json_option
def install_plugin(what: str, editable: bool, as_json: bool) -> None:
    """Install a plugin into GPUStack's own environment, with pip or uv, whichever is there.

    It is a distribution of the package index, a wheel, a source archive, or the folder of a project, also as
    PATH[EXTRA]. What GPUStack itself is made of and needs stays as it is. What brings no plugin is removed again.
    """
    from gpustack.cli.plugin_environment import installer
    from gpustack.cli.plugin_install import installed
    from gpustack.cli.plugin_wanted import wanted

    asked, by = wanted(what, editable=editable), installer()
    note(f"installing {asked.what} with {by.name}")
    done = installed(asked, by)
    if as_json:
        emit_json([each.document() for each in done.plugins])
    else:
        for each in done.plugins:
            click.echo(_said(each))
    if done.problems:
        raise GPUStackError("; ".join(done.problems))
    note(_RESTART)


@command.command("remove")
@click.argument("name", metavar="NAME")
@json_option
def remove_plugin(name: str, as_json: bool) -> None:
    """Remove a plugin, by its name or that of its distribution.

    What GPUStack itself is made of is not removed.
    """
    from gpustack.cli.plugin_environment import installer, removable

    distribution = removable(name)
    by = installer()
    note(f"removing {distribution} with {by.name}")
    by.remove(distribution)
    if as_json:
        emit_json({"distribution": distribution})
    else:
        click.echo(f"Removed {distribution}.")
    note("`gpustack restart` makes a running GPUStack forget it.")


@command.command("check")
@click.argument("name", metavar="NAME")
@click.option(
    "--database-url",
    default="",
    metavar="URL",
    help="An empty database that a database plugin is tried in; it is empty again afterwards.",
)
@click.option(
    "--traffic",
    is_flag=True,
    help="Run a gateway plugin, as its options have it by default, and send requests through it. Without this, only one "
    "without programs of its own is run: theirs may want ports that are taken here.",
)
@json_option
def check_plugin(name: str, database_url: str, traffic: bool, as_json: bool) -> int:
    """Check that an installed plugin keeps what its kinds of extension promise.

    Runs the contract suites of gpustack.testing, without a server. Exit status 1 when something does not hold.
    """
    from gpustack.cli.plugin_check import Result, examined

    results: list[Result] = []
    for each in examined(name, database_url, note, traffic=traffic):
        results.append(each)
        if not as_json:
            click.echo(f"{'ok   ' if each.ok else 'fails'}  {each.extension}: {each.promise}")
            if not each.ok:
                click.echo(f"       {each.why}")
    if as_json:
        emit_json([each.document() for each in results])
    broken = sum(not each.ok for each in results)
    if not as_json:
        note(f"{len(results) - broken} of {len(results)} hold." if broken else "Everything holds.")
    return 1 if broken else 0


@command.command("test", context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
def test_plugin(args: tuple[str, ...]) -> None:
    """Run the tests of the plugin in this folder: pytest, with ARGS, in GPUStack's own environment.

    The plugin is to be installed there, as by `gpustack plugins install --editable '.[test]'`.
    """
    from gpustack.cli.plugin_check import become_pytest

    become_pytest(args)


@command.command("new")
@click.argument("kind", metavar="KIND")
@click.argument("name", metavar="NAME")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default=False,
    metavar="PATH",
    help="Where the folder NAME is made. [default: here]",
)
def new_plugin(kind: str, name: str, directory: Path) -> None:
    """Write a complete plugin of KIND (such as backend) into the folder NAME, tests included."""
    from gpustack.cli.plugin_new import write

    folder = write(kind, name, directory)
    click.echo(f"Wrote {folder}.")
    note(
        "Next, in that folder:  gpustack plugins install --editable '.[test]'  &&  gpustack plugins test  &&  "
        f"gpustack plugins check {name}"
    )


def _list(target: Target, as_json: bool) -> None:
    found = _known(target)
    if as_json:
        emit_json([each.document() for each in found])
    else:
        rows = (row for each in found for row in _rows(each))
        emit_table(_HEADERS, rows, empty="No plugin is installed; `pip install gpustack` brings ours.")


def _known(target: Target) -> list[Found]:
    """Return the server's plugins, or those of this machine when no server was named and none runs."""
    from gpustack.cli.plugin_found import by_plugin, here
    from gpustack.client.local import NothingRuns

    try:
        return by_plugin(target.ask(lambda client: client.plugins()))
    except NothingRuns:
        return here()


def _rows(found: Found) -> Iterator[tuple[str, ...]]:
    """One for each extension; a plugin that brings none, as one that failed or has only options, has one too."""
    for kind, name in found.brings or (("-", "-"),):
        yield (
            found.name,
            kind.replace("_", " "),
            name,
            found.distribution,
            found.version,
            found.state,
            found.reason or "-",
        )


def _said(found: Found) -> str:
    how = {"loaded": "works", "partly": "works in part", "failed": "does not work"}.get(
        found.state, found.state
    )
    brings = ", ".join(f"{kind.replace('_', ' ')} {name}" for kind, name in found.brings)
    return f"Installed {found}: {how}" + (f", and brings {brings}." if brings else ".")
