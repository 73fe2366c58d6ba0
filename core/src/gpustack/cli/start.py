"""``gpustack start``."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import click

from gpustack.cli.commands import given_data_dir
from gpustack.cli.output import note
from gpustack.settings.click_bridge import GroupedCommand, typed

if TYPE_CHECKING:
    from gpustack.extensions import Catalogue
    from gpustack.settings.declared import Options
    from gpustack.settings.load import Flags


@cache
def catalogue() -> Catalogue:
    """Return what the installed plugins bring; their options are among the flags. They are loaded at the first call."""
    from gpustack.cli.loading import load_plugins

    return load_plugins()


def options() -> Options:
    """Return every option there is here."""
    return catalogue().options


def flags_of(values: dict[str, Any]) -> Flags:
    """Return the options that were typed, with a ``--data-dir`` that stood before the command."""
    flags = typed(values)
    if before := given_data_dir(click.get_current_context()):
        flags.setdefault("data_dir", before)
    return flags


def _start(**values: Any) -> None:
    from gpustack.app.start import start

    start(flags_of(values), catalogue(), warn=lambda line: note(f"Warning: {line}"))


command = GroupedCommand(
    "start",
    options=options,
    callback=_start,
    help="Start GPUStack on this machine.\n\nRuns the server with a built-in worker until Ctrl-C, `gpustack stop` "
    "or SIGTERM. Each option can also be given by the variable GPUSTACK_<OPTION> or in the file of --config-file; "
    "flags come before variables, variables before the file. `gpustack config` shows and checks them.",
)
