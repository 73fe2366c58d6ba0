"""``gpustack logout``."""

from __future__ import annotations

import click

from gpustack.cli.output import emit_json, note
from gpustack.cli.target import Connection, json_option, run_async
from gpustack.kit.errors import GPUStackError, NotFound


@click.command("logout")
@click.argument("url", required=False)
@json_option
def command(url: str | None, as_json: bool) -> None:
    """Forget a login.

    The one made last without URL; its API key is revoked.
    """
    from gpustack.client.logins import Logins

    logins = Logins()
    login = logins.get(url) if url else logins.current()
    if login is None:
        raise NotFound(f"not signed in to {url}" if url else "not signed in anywhere")
    connection = Connection(url=login.url, credential=login.key, local=False)
    revoked = True
    try:
        run_async(connection, lambda client: client.keys.delete(login.key_id))
    except GPUStackError as error:
        revoked = False
        note(f"The API key could not be revoked: {error}")
    logins.forget(login.url)
    if as_json:
        emit_json({"url": login.url, "revoked": revoked})
    else:
        click.echo(f"Signed out of {login.url}.")
