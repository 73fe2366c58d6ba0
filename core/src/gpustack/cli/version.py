"""``gpustack version``."""

from __future__ import annotations

import click

from gpustack import __version__


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def command(as_json: bool) -> None:
    """Show the version."""
    if as_json:
        import json

        click.echo(json.dumps({"version": __version__}))
    else:
        click.echo(f"gpustack {__version__}")
