"""``gpustack start``."""

from __future__ import annotations

from typing import Any

import click

from gpustack.cli.commands import given_data_dir
from gpustack.settings.click_bridge import GroupedCommand, click_options


def _start(**values: Any) -> None:
    from gpustack.app.start import start

    flags = {name: str(value) for name, value in values.items() if value is not None}
    if before := given_data_dir(click.get_current_context()):
        flags.setdefault("data_dir", before)
    start(flags)


command = GroupedCommand(
    "start",
    params=click_options(),
    callback=_start,
    help="Start GPUStack on this machine.\n\nRuns the server with a built-in worker until Ctrl-C, `gpustack stop` "
    "or SIGTERM. Each option can also be given by the variable GPUSTACK_<OPTION> or in the file of --config-file; "
    "flags come before variables, variables before the file.",
)
