"""``gpustack scale``."""

from __future__ import annotations

import click

from gpustack.cli import complete
from gpustack.cli.changing import Change, wait_options
from gpustack.cli.target import Target, json_option, server_options


@click.command("scale", context_settings={"ignore_unknown_options": True})
@click.argument("model", shell_complete=complete.models)
@click.argument("replicas", type=click.IntRange(0, 1000))
@wait_options
@server_options
@json_option
def command(model: str, replicas: int, wait: bool, timeout: float, target: Target, as_json: bool) -> int:
    """Run more or fewer copies of a model.

    Waits until as many run. With fewer, requests in flight are finished first; with 0 the model stays known and
    takes no memory.
    """
    change = Change(model=model, fields={"replicas": replicas}, wait=wait, timeout=timeout, as_json=as_json)
    return change.run(target)
