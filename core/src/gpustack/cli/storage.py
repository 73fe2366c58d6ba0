"""Where the data of this machine's GPUStack are, found as ``gpustack start`` finds it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from gpustack.cli.commands import given_data_dir


def storage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--data-dir``, ``--database-url`` and ``--config-file``; hand over ``data_dir`` and ``database_url``.

    What is not given comes from the variables and the file that ``start`` reads. ``database_url`` is empty for the
    embedded database.
    """

    @functools.wraps(command)
    def with_storage(
        *args: Any, data_dir: str | None, database_url: str | None, config_file: str | None, **kwargs: Any
    ) -> Any:
        from gpustack.cli.loading import load_plugins
        from gpustack.settings.load import load

        data_dir = data_dir or given_data_dir(click.get_current_context()) or None
        given = {"data_dir": data_dir, "database_url": database_url, "config_file": config_file}
        typed = {name: value for name, value in given.items() if value is not None}
        settings = load(typed, load_plugins().options)
        return command(*args, data_dir=settings.data_dir, database_url=settings.database_url or "", **kwargs)

    for name, metavar, text in (
        ("config-file", "PATH", "The YAML file that `gpustack start` is given."),
        (
            "database-url",
            "URL",
            "The database, where it is not the embedded one; also by GPUSTACK_DATABASE_URL.",
        ),
        ("data-dir", "PATH", "Data directory of the GPUStack on this machine."),
    ):
        with_storage = click.option(f"--{name}", metavar=metavar, default=None, help=text)(with_storage)
    return with_storage
