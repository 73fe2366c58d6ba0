"""``gpustack config``."""

from __future__ import annotations

from typing import Any

import click

from gpustack.cli.output import emit_json, emit_table, note
from gpustack.cli.start import flags_of, options
from gpustack.cli.target import Target, data_dir_option, json_option
from gpustack.settings.click_bridge import GroupedCommand
from gpustack.settings.option import GROUPS


@click.group("config")
def command() -> None:
    """Show, check and reload the settings of `gpustack start`."""


def _like_start(name: str, callback: Any, text: str, *more: click.Parameter) -> None:
    command.add_command(
        GroupedCommand(name, params=list(more), options=options, callback=callback, help=text)
    )


_AS_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.")


def _show(as_json: bool, **values: Any) -> None:
    from gpustack.settings.load import read
    from gpustack.settings.shown import as_text, shown

    loaded = read(flags_of(values), options())
    for line in loaded.warnings:
        note(f"Warning: {line}")
    loaded.checked()
    rows = shown(loaded)
    if as_json:
        emit_json(rows)
        return
    rows.sort(key=lambda row: GROUPS.index(row["group"]))
    emit_table(
        ["OPTION", "VALUE", "FROM"],
        ((row["name"], as_text(row["value"]) or "-", row["origin"] or "default") for row in rows),
        empty="",
    )


_like_start(
    "show",
    _show,
    "Show what `gpustack start` would run with here, and where each value comes from.\n\nTakes the options of `gpustack "
    "start`, and reads the same variables and file. Secrets are not shown.",
    _AS_JSON,
)


def _check(as_json: bool, **values: Any) -> int:
    from gpustack.app.checks import examine
    from gpustack.cli.entry import OK, USAGE

    found = examine(flags_of(values), options())
    warnings = [*found.warnings, *found.hints]
    if as_json:
        emit_json({"ok": not found.problems, "problems": list(found.problems), "warnings": warnings})
        return USAGE if found.problems else OK
    for line in warnings:
        note(f"Warning: {line}")
    found.settings()
    click.echo("The settings are right." if not warnings else "The settings can be used.")
    return OK


_like_start(
    "check",
    _check,
    "Check the settings as `gpustack start` would, and start nothing.\n\nTakes the options of `gpustack start`. Also "
    "looks at what they name: directories, ports, certificates. Exit status 2 when something is wrong.",
    _AS_JSON,
)


@command.command("example")
def example() -> None:
    """Print a YAML file for --config-file with every option in it, commented out."""
    from gpustack.settings.reference import example as text

    click.echo(text(options()), nl=False)


@command.command("schema")
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors."""
    from gpustack.settings.reference import schema as made

    emit_json(made(options()))


@command.command("reload")
@data_dir_option
@json_option
def reload(data_dir: str, as_json: bool) -> int:
    """Apply what has changed in the settings of the running GPUStack, without a restart.

    They are read again, with the flags and variables of `gpustack start` and its file as it is now. Applied are debug,
    the CORS options, the TLS files, the hub's token and the update check; what else has changed is named, and takes
    `gpustack restart` or a new start. When something is wrong, nothing is applied.
    """
    from dataclasses import asdict

    from gpustack.cli.entry import FAILED, OK
    from gpustack.client.local import reload as ordered

    done = ordered(Target(data_dir=data_dir).directory)
    status = FAILED if done.troubles else OK
    if as_json:
        emit_json(asdict(done))
        return status
    for line in done.warnings:
        note(f"Warning: {line}")
    click.echo(f"Applied: {', '.join(done.applied)}." if done.applied else "Nothing to apply has changed.")
    if done.needs_restart:
        note(f"Changed, and takes `gpustack restart`: {', '.join(done.needs_restart)}.")
    for line in done.troubles:
        note(f"Error: {line}")
    return status
