"""``gpustack restore``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from gpustack.cli.output import emit_json, note
from gpustack.cli.storage import storage_options
from gpustack.cli.target import json_option
from gpustack.cli.usage import not_empty


@click.command("restore")
@click.argument("file")
@click.option("--replace", is_flag=True, help="Replace what is there already, after a backup of it.")
@storage_options
@json_option
def command(file: str, replace: bool, data_dir: Path, database_url: str, as_json: bool) -> None:
    """Restore the backup FILE, all of it or nothing.

    GPUStack must be stopped. A backup of an older version is brought up to this one; that of a newer one is refused.
    """
    not_empty("FILE", file)
    from gpustack.app import backup
    from gpustack.kit.text import plural

    source = Path(file).expanduser().absolute()
    done, kept = asyncio.run(backup.restore(data_dir, database_url, source, replace=replace))
    if as_json:
        replaced = str(kept) if kept else None
        emit_json({"rows": done.rows, "created_at": done.created_at, "backup_of_replaced": replaced})
        return
    if kept:
        note(f"What was there before is in {kept}.")
    click.echo(
        f"Restored {plural(done.rows, 'row')} of {done.created_at}, written by GPUStack {done.gpustack_version}."
    )
