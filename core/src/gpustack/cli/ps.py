"""``gpustack ps``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from gpustack.cli.names import state_of, workers_of
from gpustack.cli.output import age, emit_documents, emit_table, first_line
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.text import plural

if TYPE_CHECKING:
    from gpustack.schemas import ModelInstancePublic

_EMPTY = "Nothing runs; `gpustack deploy PATH` serves a model."


@click.command("ps")
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
    """List the running copies of models.

    With --watch, --json prints one document per change.
    """
    if live:
        return _watch(target, as_json=as_json)
    instances = target.ask(lambda client: client.instances.list_all(sort_by="name"))
    if as_json:
        emit_documents(instances)
        return 0
    emit_table(
        ["NAME", "MODEL", "STATE", "WORKER", "PID", "PORT", "BACKEND", "AGE", "MESSAGE"],
        (
            (
                each.name,
                each.model_name,
                state_of(each),
                workers_of(each),
                each.pid or "-",
                each.port or "-",
                " ".join(filter(None, [each.backend, each.backend_version])) or "-",
                age(each.created_at),
                first_line(each.state_message),
            )
            for each in instances
        ),
        empty=_EMPTY,
    )
    return 0


def _watch(target: Target, *, as_json: bool) -> int:
    from gpustack.cli.live import Listing, watch
    from gpustack.schemas import ModelInstancePublic

    listing = Listing(
        path="/v2/model-instances",
        kind=ModelInstancePublic,
        headers=["NAME", "STATE", "FOR", "WORKER", "PORT", "RESTARTS", "MESSAGE"],
        row=_row,
        line=lambda each: f"{each.name}  {state_of(each)}  {workers_of(each)}  {_progress(each)}".rstrip(),
        summary=_summary,
        empty=_EMPTY,
    )
    return watch(target, listing, as_json=as_json)


def _row(each: ModelInstancePublic) -> tuple[object, ...]:
    return (
        each.name,
        state_of(each),
        age(each.draining_since or each.state_since),
        workers_of(each),
        each.port or "-",
        each.restart_count,
        _progress(each),
    )


def _progress(each: ModelInstancePublic) -> str:
    message = first_line(each.state_message)
    if each.state == "downloading" and "%" not in message:
        return f"{each.download_progress:.0f} %  {message}".rstrip()
    return message


def _summary(instances: list[ModelInstancePublic]) -> str:
    counts = Counter(state_of(each) for each in instances)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return f"{plural(len({each.model_id for each in instances}), 'model')}: {states or 'nothing runs'}"
