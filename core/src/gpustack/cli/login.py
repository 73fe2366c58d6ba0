"""``gpustack login``."""

from __future__ import annotations

import socket
import sys

import click

from gpustack.cli.output import emit_json, note
from gpustack.cli.target import json_option, server_url
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import GPUStackError, Unauthenticated
from gpustack.kit.text import random_suffix


@click.command("login")
@click.argument("url")
@click.option("--username", metavar="NAME", help="Asked for otherwise.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@json_option
def command(url: str, username: str | None, password_stdin: bool, as_json: bool) -> None:
    """Sign in to the GPUStack of another machine.

    Makes an API key there, named after this machine, and keeps it in a file that only you can read. Commands use
    the last login when no GPUStack runs on this machine; --server chooses another.
    """
    import asyncio

    server = str(server_url(url))
    username, password = _asked(username, from_stdin=password_stdin)
    reminder = asyncio.run(_login(server, username, password))
    if as_json:
        emit_json({"url": server, "username": username})
        return
    click.echo(f"Signed in to {server} as {username}.")
    if reminder:
        note(f"That password was made up by the installation; change it at {server}.")


def _asked(username: str | None, *, from_stdin: bool) -> tuple[str, str]:
    """Return user name and password. Nothing is echoed while the password is typed."""
    if from_stdin:
        if not username:
            raise WrongUsage("--password-stdin needs --username NAME")
        password = sys.stdin.readline().rstrip("\r\n")
    elif not sys.stdin.isatty():
        raise WrongUsage("there is no terminal to ask on; use --username NAME --password-stdin")
    else:
        username = username or click.prompt("User name", default="admin", err=True)
        password = click.prompt("Password", hide_input=True, err=True)
    if not password:
        raise WrongUsage("the password is empty")
    return str(username), password


async def _login(url: str, username: str, password: str) -> bool:
    """Sign in, make a key, save it; return whether the password should be changed."""
    from gpustack.client import Client
    from gpustack.client.logins import Login, Logins
    from gpustack.schemas import ApiKeyCreate

    logins = Logins()
    before = logins.get(url)
    async with Client(url) as client:
        try:
            reply = await client.login(username, password)
        except Unauthenticated as error:
            raise Unauthenticated(f"{url}: {error}") from error
        name = f"gpustack login on {socket.gethostname()[:80]} {random_suffix()}"
        key = await client.keys.create(ApiKeyCreate(name=name, description="made by `gpustack login`"))
        logins.save(Login(url=url, username=username, key_id=key.id, key=key.value))
        if before is not None and before.username == username:
            try:
                await client.keys.delete(before.key_id)
            except GPUStackError as error:
                note(f"The key of the login before could not be revoked: {error}")
        await client.logout()
    return reply.require_password_change
