"""``gpustack ps``."""

from __future__ import annotations

import click

from gpustack.cli.output import age, emit_documents, emit_table, first_line
from gpustack.cli.target import Target, json_option, server_options


@click.command("ps")
@server_options
@json_option
def command(target: Target, as_json: bool) -> None:
    """List the running copies of models."""
    instances = target.ask(lambda client: client.instances.list_all(sort_by="name"))
    if as_json:
        emit_documents(instances)
        return
    emit_table(
        ["NAME", "MODEL", "STATE", "WORKER", "PID", "PORT", "BACKEND", "AGE", "MESSAGE"],
        (
            (
                each.name,
                each.model_name,
                each.state,
                each.worker_name or "-",
                each.pid or "-",
                each.port or "-",
                " ".join(filter(None, [each.backend, each.backend_version])) or "-",
                age(each.created_at),
                first_line(each.state_message),
            )
            for each in instances
        ),
        empty="Nothing runs; `gpustack deploy PATH` serves a model.",
    )
