"""``gpustack start``."""

from __future__ import annotations

from typing import Any

import click

from gpustack.cli.commands import given_data_dir
from gpustack.cli.output import note
from gpustack.extensions import load_catalogue
from gpustack.settings.click_bridge import GroupedCommand, click_options, typed
from gpustack.settings.load import Flags


def flags_of(values: dict[str, Any]) -> Flags:
    """Return the options that were typed, with a ``--data-dir`` that stood before the command."""
    flags = typed(values)
    if before := given_data_dir(click.get_current_context()):
        flags.setdefault("data_dir", before)
    return flags


def _start(**values: Any) -> None:
    from gpustack.app.start import start

    start(flags_of(values), CATALOGUE, warn=lambda line: note(f"Warning: {line}"))


#: What the installed plugins bring; their options are among the flags.
CATALOGUE = load_catalogue()

command = GroupedCommand(
    "start",
    params=click_options(CATALOGUE.options),
    callback=_start,
    help="Start GPUStack on this machine.\n\nRuns the server with a built-in worker until Ctrl-C, `gpustack stop` "
    "or SIGTERM. Each option can also be given by the variable GPUSTACK_<OPTION> or in the file of --config-file; "
    "flags come before variables, variables before the file. `gpustack config` shows and checks them.",
)
