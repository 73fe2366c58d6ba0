"""The command line: ``gpustack COMMAND``.

Each command is a module of its own, imported when it is called; :mod:`gpustack.cli.commands` lists them. Exit
statuses:

    0    done
    1    failed; one line on standard error says why
    2    the command line or a setting is wrong
    3    no GPUStack runs there
    130  interrupted

``GPUSTACK_DEBUG=1`` shows the traceback of a failure.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run ``gpustack ARGS`` (those of this process for None) and return the exit status. Never raises."""
    from gpustack.cli.entry import run

    return run(args)
