"""The commands, and the group that imports each only when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: The commands by what they are for: name, module below ``gpustack.cli``, and the line that ``gpustack --help`` shows
#: without importing it.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Serve models": {
        "deploy": ("deploy", "Serve a model."),
        "catalog": ("catalog", "List the models that can be deployed by their name."),
        "ls": ("ls", "List models."),
        "ps": ("ps", "List the running copies of models."),
        "show": ("show", "Show everything about one model."),
        "explain": ("explain", "Show why a model runs where it runs, or why it waits."),
        "chat": ("chat", "Talk to a model."),
        "logs": ("logs", "Show the log of an engine."),
        "events": ("events", "Show what happened to a model, such as why it was restarted."),
        "scale": ("scale", "Run more or fewer copies of a model."),
        "update": ("update", "Change how a model is served."),
        "rm": ("rm", "Stop serving models."),
        "routes": (
            "routes",
            "List, create, change and remove the names that requests ask for.",
        ),
    },
    "Machines": {
        "start": ("start", "Start GPUStack on this machine."),
        "config": ("config", "Show, check and reload the settings of `gpustack start`."),
        "stop": ("stop", "Stop the GPUStack of this machine, engines included."),
        "restart": (
            "restart",
            "Replace GPUStack's own processes on this machine by those installed now; engines go on.",
        ),
        "status": ("status", "Show what runs on this machine."),
        "backup": ("backup", "Back up the database and the small files that belong to it into FILE."),
        "restore": ("restore", "Restore the backup FILE, all of it or nothing."),
        "workers": ("workers", "List, add, label and remove workers."),
        "gpus": ("gpus", "List the GPUs of all workers."),
        "defragment": ("defragment", "Propose moves of copies that would make room."),
        "backends": (
            "backends",
            "List, describe and remove inference backends, and install or remove their engines here.",
        ),
        "simulate": (
            "simulate",
            "Try what a fleet would do with a workload, or decide recorded decisions again.",
        ),
        "plugins": ("plugins", "List plugins, install, remove and check them, and begin a new one."),
    },
    "Access": {
        "keys": ("keys", "List, create and revoke API keys."),
        "login": ("login", "Sign in to the GPUStack of another machine."),
        "logout": ("logout", "Forget a login."),
        "reset-admin-password": ("reset_admin_password", "Give the user admin a new password."),
    },
    "This command line": {
        "completion": ("completion", "Print the script that completes commands in your shell."),
        "version": ("version", "Show the version."),
    },
}
COMMANDS = {name: said for section in SECTIONS.values() for name, said in section.items()}


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
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
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
        """List the commands by what they are for, without importing one."""
        width = max(map(len, COMMANDS))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", line) for name, (_, line) in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command without importing one."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


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
