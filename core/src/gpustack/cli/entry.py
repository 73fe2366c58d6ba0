"""Runs the command line and turns whatever happens into an exit status and one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from gpustack.cli.commands import ReaderLeft, group
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import GPUStackError, SettingsError
from gpustack.kit.text import shorten

OK, FAILED, USAGE, NOTHING_RUNS, INTERRUPTED = 0, 1, 2, 3, 130
#: As a shell counts a program that died of SIGPIPE.
BROKEN_PIPE = 141
#: Characters of a line about what went wrong; a name or path of any length may be quoted in it.
_LONGEST = 800


def debugging() -> bool:
    """Tell whether the user asked for tracebacks."""
    return os.environ.get("GPUSTACK_DEBUG", "").lower() in ("1", "true", "yes", "on")


def run(args: Sequence[str] | None = None) -> int:
    """Run ``gpustack ARGS`` and return the exit status."""
    try:
        status = _run(args)
        sys.stdout.flush()
    except (BrokenPipeError, ReaderLeft):
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        _drop_output()
        _say(f"Error: standard output cannot be written: {error.strerror}")
        return FAILED
    return status


def _run(args: Sequence[str] | None) -> int:
    try:
        status = group.main(_helped(args), prog_name="gpustack", standalone_mode=False)
    except (BrokenPipeError, ReaderLeft):
        raise
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 has it, 8.1 prints the help by itself
            click.echo(error.format_message())
            return OK
        return _usage(error)
    except (click.Abort, KeyboardInterrupt):
        _say("")
        return INTERRUPTED
    except GPUStackError as error:
        _trace()
        _say(*(f"Error: {line}" for line in _lines(error)))
        return _status_of(error)
    except Exception as error:  # noqa: BLE001 - whatever it was, a user reads a line and no traceback
        _trace()
        said = (str(error) or "no message").splitlines()[0]
        _say(f"Error: unexpected {type(error).__name__}: {said}; GPUSTACK_DEBUG=1 shows where")
        return FAILED
    return status if isinstance(status, int) else OK


def _helped(args: Sequence[str] | None) -> list[str]:
    """Understand ``gpustack help COMMAND`` as ``gpustack COMMAND --help``."""
    words = list(sys.argv[1:] if args is None else args)
    return [*words[1:], "--help"] if words[:1] == ["help"] else words


def _lines(error: GPUStackError) -> list[str]:
    """Wrong settings are named all at once, a line each; else what follows the first line belongs to it."""
    text = error.message.rstrip()
    return text.splitlines() if isinstance(error, SettingsError) else [text]


def _status_of(error: GPUStackError) -> int:
    if isinstance(error, SettingsError | WrongUsage):
        return USAGE
    # Imported only now: an error of that kind means that its module has been loaded.
    local = sys.modules.get("gpustack.client.local")
    return NOTHING_RUNS if local is not None and isinstance(error, local.NothingRuns) else FAILED


def _usage(error: click.ClickException) -> int:
    line = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        line = f"{line.rstrip('.')} (see `{context.command_path} --help`)"
    _say(f"Error: {line}")
    return USAGE


def _trace() -> None:
    if debugging():
        import traceback

        traceback.print_exc()


def _say(*lines: str) -> None:
    for text in lines:
        short = "\n".join(shorten(line, _LONGEST) for line in text.split("\n"))
        click.echo(short, err=True)


def _drop_output() -> None:
    """Nobody reads any more: keep the interpreter from complaining when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
