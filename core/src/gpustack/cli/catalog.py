"""``gpustack catalog``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpustack.cli.output import emit_documents, emit_table, note, on_terminal
from gpustack.cli.target import Connection, Target, json_option, run_async, server_options
from gpustack.kit.errors import NotFound

if TYPE_CHECKING:
    from gpustack.schemas import ModelSetPublic

_HEADERS = ["NAME", "WEIGHTS", "CATEGORIES", "LICENCE", "WHAT IT IS"]
_EMPTY = "The catalog is empty: no installed plugin brings a model."


@click.command("catalog")
@server_options
@json_option
def command(target: Target, as_json: bool) -> None:
    """List the models that can be deployed by their name.

    `gpustack deploy NAME` serves one of them.
    """
    entries = target.ask(lambda client: client.model_sets.list_all())
    if as_json:
        emit_documents(entries)
    else:
        emit_table(_HEADERS, map(_row, entries), empty=_EMPTY)
        if entries and on_terminal():
            note(f"Serve one:  gpustack deploy {entries[0].name}")


def catalog_names(connection: Connection) -> list[str]:
    """Return the names; none from a server that is too old to have a catalog."""
    try:
        return [each.name for each in run_async(connection, lambda client: client.model_sets.list_all())]
    except NotFound:
        return []


def _row(entry: ModelSetPublic) -> tuple[object, ...]:
    return (
        entry.name,
        f"{entry.size:g} {entry.size_unit}" if entry.size else "-",
        ",".join(entry.categories) or "-",
        ", ".join(entry.licenses) or "-",
        entry.description,
    )
