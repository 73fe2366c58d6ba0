"""The commands, and the group that imports each only when it is called."""

from __future__ import annotations

from importlib import import_module

import click

#: Name, module below ``gpustack.cli``, and the line that ``gpustack --help`` shows without importing it.
COMMANDS: dict[str, tuple[str, str]] = {
    "start": ("start", "Start GPUStack on this machine."),
    "stop": ("stop", "Stop the GPUStack of this machine, engines included."),
    "status": ("status", "Show what runs on this machine."),
    "deploy": ("deploy", "Serve a model."),
    "ls": ("ls", "List models."),
    "ps": ("ps", "List the running copies of models."),
    "rm": ("rm", "Stop serving models."),
    "logs": ("logs", "Show the log of an engine."),
    "chat": ("chat", "Talk to a model."),
    "workers": ("workers", "List workers."),
    "backends": ("backends", "List inference backends."),
    "keys": ("keys", "List, create and revoke API keys."),
    "login": ("login", "Sign in to the GPUStack of another machine."),
    "logout": ("logout", "Forget a login."),
    "reset-admin-password": ("reset_admin_password", "Give the user admin a new password."),
    "version": ("version", "Show the version."),
}


class ReaderLeft(Exception):
    """Whoever read our output does so no longer, as ``| head`` does when it has enough."""


class LazyGroup(click.Group):
    """Knows its commands by name, and imports one when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of their use, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"gpustack.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say of a name that is none what was probably meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            ctx.fail(f"No such command {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. Raises ReaderLeft, since click makes a failure of a broken pipe."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderLeft from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    del parameter
    if wanted and not ctx.resilient_parsing:
        from gpustack import __version__

        click.echo(__version__)
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage or setting, 3 nothing runs there, 130 interrupted. "
    "NO_COLOR turns colours off, GPUSTACK_DEBUG=1 shows tracebacks.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version.",
)
@click.option(
    "--data-dir",
    metavar="PATH",
    help="Data directory of the GPUStack on this machine, as after each command.",
)
def group(data_dir: str | None) -> None:
    """Serve AI models on machines you own."""
    del data_dir  # read by the commands from the context


def given_data_dir(ctx: click.Context) -> str:
    """Return the ``--data-dir`` that stood before the command, empty when there was none."""
    return str(ctx.find_root().params.get("data_dir") or "")
