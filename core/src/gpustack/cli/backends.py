"""``gpustack backends``."""

from __future__ import annotations

import click

from gpustack.cli.output import emit_documents, emit_table
from gpustack.cli.target import Target, json_option, server_options


@click.command("backends")
@server_options
@json_option
def command(target: Target, as_json: bool) -> None:
    """List inference backends."""
    backends = target.ask(lambda client: client.backends.list_all())
    if as_json:
        emit_documents(backends)
        return
    emit_table(
        ["NAME", "DEFAULT VERSION", "PLUGIN", "INSTALLED"],
        (
            (
                each.backend_name,
                each.default_version,
                f"{each.distribution} {each.distribution_version}",
                "; ".join(
                    f"{', '.join(versions)} on {worker}"
                    for worker, versions in each.installed_versions.items()
                )
                or "-",
            )
            for each in backends
        ),
        empty="No backend is installed; `pip install gpustack-backends` brings ours.",
    )
