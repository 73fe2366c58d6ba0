"""``gpustack ls``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpustack.cli.output import age, emit_documents, emit_table
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.text import plural

if TYPE_CHECKING:
    from gpustack.schemas import ModelPublic

_HEADERS = ["NAME", "READY", "CATEGORIES", "BACKEND", "AGE", "SOURCE"]
_EMPTY = "No models yet; `gpustack deploy PATH` serves one, and `gpustack catalog` lists some to try."


@click.command("ls")
@click.option(
    "--watch",
    "-w",
    "live",
    is_flag=True,
    help="Show them as they change, until q; a line per change in a pipe.",
)
@server_options
@json_option
def command(live: bool, target: Target, as_json: bool) -> int:
    """List models.

    With --watch, --json prints one document per change.
    """
    if live:
        return _watch(target, as_json=as_json)
    models = target.ask(lambda client: client.models.list_all(sort_by="name"))
    if as_json:
        emit_documents(models)
    else:
        emit_table(_HEADERS, map(_row, models), empty=_EMPTY)
    return 0


def _row(model: ModelPublic) -> tuple[object, ...]:
    from gpustack.schemas import source_name

    return (
        model.name,
        f"{model.ready_replicas}/{model.replicas}",
        ",".join(model.categories) or "-",
        " ".join(filter(None, [model.backend or "auto", model.backend_version])),
        age(model.created_at),
        source_name(model),
    )


def _watch(target: Target, *, as_json: bool) -> int:
    from gpustack.cli.live import Listing, watch
    from gpustack.schemas import ModelPublic

    listing = Listing(
        path="/v2/models",
        kind=ModelPublic,
        headers=_HEADERS,
        row=_row,
        line=lambda model: f"{model.name}  {model.ready_replicas}/{model.replicas} ready",
        summary=lambda models: plural(len(models), "model"),
        empty=_EMPTY,
    )
    return watch(target, listing, as_json=as_json)
