"""``gpustack restart``."""

from __future__ import annotations

import click

from gpustack.cli.output import emit_json, note
from gpustack.cli.target import Target, data_dir_option, json_option


@click.command("restart")
@data_dir_option
@json_option
def command(data_dir: str, as_json: bool) -> None:
    """Replace GPUStack's own processes on this machine by those installed now; engines go on.

    The settings are read again, with the flags and variables of `gpustack start` and its file as it is now. When
    something is wrong with them, nothing is touched. New requests wait meanwhile, and none is refused. Answers that
    are under way through the server have 3 seconds to end; streams that take longer are cut.
    """
    import time

    from gpustack.client.local import restart

    began = time.monotonic()
    version = restart(Target(data_dir=data_dir).directory, say=note)
    seconds = time.monotonic() - began
    if as_json:
        emit_json({"restarted": True, "version": version, "seconds": round(seconds, 2)})
    else:
        click.echo(f"GPUStack {version} has been restarted in {seconds:.1f} s.")
