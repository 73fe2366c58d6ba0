"""``gpustack reset-admin-password``."""

from __future__ import annotations

import sys

import click

from gpustack.cli.output import emit_json, note
from gpustack.cli.target import Target, data_dir_option, json_option, run_async
from gpustack.kit.errors import InvalidInput


@click.command("reset-admin-password")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the new password from standard input.")
@data_dir_option
@json_option
def command(from_stdin: bool, data_dir: str, as_json: bool) -> None:
    """Give the user admin a new password.

    Works on the server's own machine, while it runs; whoever may read its data directory may do this. Without
    --stdin a password is made up and printed. All sessions of admin end.
    """
    # Neither a login nor a key: only the token in the data directory proves to be on that machine.
    connection = Target(data_dir=data_dir, only_there=True).connection()
    new = _password() if from_stdin else None
    password = run_async(connection, lambda client: client.reset_admin_password(new))
    if as_json:
        emit_json({"username": "admin", "password": password})
    elif from_stdin:
        click.echo("The password of admin was changed.")
    else:
        note("The new password of admin:")
        click.echo(password)


def _password() -> str:
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise InvalidInput("standard input holds no password")
    return password
