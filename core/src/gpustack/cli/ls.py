"""``gpustack ls``."""

from __future__ import annotations

import click

from gpustack.cli.output import age, emit_documents, emit_table
from gpustack.cli.target import Target, json_option, server_options


@click.command("ls")
@server_options
@json_option
def command(target: Target, as_json: bool) -> None:
    """List models."""
    models = target.ask(lambda client: client.models.list_all(sort_by="name"))
    if as_json:
        emit_documents(models)
        return
    emit_table(
        ["NAME", "READY", "CATEGORIES", "BACKEND", "AGE", "SOURCE"],
        (
            (
                model.name,
                f"{model.ready_replicas}/{model.replicas}",
                ",".join(model.categories) or "-",
                " ".join(filter(None, [model.backend or "auto", model.backend_version])),
                age(model.created_at),
                model.local_path,
            )
            for model in models
        ),
        empty="No models yet; `gpustack deploy PATH` serves one.",
    )
