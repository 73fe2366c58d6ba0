"""``gpustack completion``."""

from __future__ import annotations

import click

_HOW = {
    "bash": 'eval "$(gpustack completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(gpustack completion zsh)" in ~/.zshrc',
    "fish": "gpustack completion fish | source in ~/.config/fish/config.fish",
}


@click.command("completion", epilog="  ".join(f"{shell}: {line}." for shell, line in _HOW.items()))
@click.argument("shell", type=click.Choice([*_HOW]))
def command(shell: str) -> None:
    """Print the script that completes commands in your shell.

    It completes commands, options, and the names of models and workers that the server knows.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # click brings all of these
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "gpustack", "_GPUSTACK_COMPLETE").source())
