"""``gpustack backup``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from gpustack.cli.output import emit_json
from gpustack.cli.storage import storage_options
from gpustack.cli.target import json_option
from gpustack.cli.usage import not_empty


@click.command("backup")
@click.argument("file", default=".")
@storage_options
@json_option
def command(file: str, data_dir: Path, database_url: str, as_json: bool) -> None:
    """Back up the database and the small files that belong to it into FILE.

    FILE is a .tar.gz for `gpustack restore`, readable by you alone, since it holds secrets; a directory gets one named
    after the time. Engines and model files are not in it. GPUStack may run meanwhile.
    """
    not_empty("FILE", file)
    from gpustack.app import backup
    from gpustack.kit.text import human_bytes, plural

    done = asyncio.run(backup.write(data_dir, database_url, Path(file).expanduser().absolute()))
    if as_json:
        emit_json({"file": str(done.path), "rows": done.rows, "size": done.size})
    else:
        click.echo(f"{done.path}: {plural(done.rows, 'row')}, {human_bytes(done.size)}")
