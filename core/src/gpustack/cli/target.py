"""Which server a command speaks to, and as whom.

In this order: ``--server`` (or ``GPUSTACK_SERVER``) with ``--api-key`` or a saved login; the GPUStack that runs
here with ``--data-dir``; the one that runs with the default data directory; the last ``gpustack login``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from gpustack.cli.commands import given_data_dir
from gpustack.cli.output import note
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import Forbidden, InvalidInput, Unauthenticated
from gpustack.kit.paths import default_data_dir

if TYPE_CHECKING:
    import httpx

    from gpustack.client import Client

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A server that was chosen. The credential is kept out of ``repr``."""

    url: str
    credential: str
    #: The server runs on this very machine, so its worker sees the same files.
    local: bool
    #: Its data directory, when it was found by that.
    data_dir: Path | None = None
    #: The credential is the command line's own of that data directory, and no key that somebody made.
    own_token: bool = False

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    def client(self) -> Client:
        """Return a client, which goes on when a GPUStack of this machine is started again under it."""
        from gpustack.client import Client
        from gpustack.client.local import cli_token

        if self.data_dir is None or not self.own_token:
            return Client(self.url, self.credential)
        return Client(self.url, self.credential, renew=functools.partial(cli_token, self.data_dir))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the user said about the server; empty for not said."""

    server: str = ""
    api_key: str = ""
    data_dir: str = ""
    #: No other server will do than the one of ``data_dir``.
    only_there: bool = False

    @property
    def directory(self) -> Path:
        """The data directory of the GPUStack on this machine."""
        return Path(self.data_dir).expanduser().absolute() if self.data_dir else default_data_dir()

    def connection(self, *, changes: bool = False) -> Connection:
        """Return the server to speak to. Raises NothingRuns, Forbidden, or Unauthenticated with what to do.

        What ``changes`` something says so when it is the server of the last login, which the user may not have
        in mind.
        """
        if self.server:
            return self._named()
        from gpustack.client.local import NothingRuns, cli_token, running_state

        try:
            state = running_state(self.directory)
            if state.server_url:
                raise NothingRuns(
                    f"this machine is a worker of {state.server_url}; sign in there with `gpustack login "
                    f"{state.server_url}`"
                )
            key = self.api_key or cli_token(self.directory)
            return Connection(
                url=state.local_url, credential=key, local=True, data_dir=self.directory,
                own_token=not self.api_key,
            )  # fmt: skip
        except (NothingRuns, Forbidden):
            saved = None if self.only_there else self._last_login()
            if saved is None:
                raise
            if changes:
                note(f"No GPUStack of yours runs here; this is for {saved.url}, the last login.")
            return saved

    def _named(self) -> Connection:
        from gpustack.client.logins import Logins
        from gpustack.client.transport import is_loopback

        url = server_url(self.server)
        key = self.api_key
        if not key:
            login = Logins().get(str(url))
            if login is None:
                raise Unauthenticated(f"not signed in to {url}; use `gpustack login {url}` or --api-key")
            key = login.key
        return Connection(url=str(url), credential=key, local=is_loopback(url.host))

    def _last_login(self) -> Connection | None:
        from gpustack.client.logins import Logins
        from gpustack.client.transport import checked_url, is_loopback

        login = Logins().current()
        if login is None:
            return None
        local = is_loopback(checked_url(login.url).host)
        return Connection(url=login.url, credential=self.api_key or login.key, local=local)

    def ask(self, question: Callable[[Client], Awaitable[T]], *, changes: bool = False) -> T:
        """Run ``question`` with a client of the chosen server and return its answer."""
        return run_async(self.connection(changes=changes), question)


def server_url(text: str) -> httpx.URL:
    """Return the URL of a server that was typed. Raises WrongUsage."""
    from gpustack.client.transport import checked_url

    try:
        return checked_url(text)
    except InvalidInput as error:
        raise WrongUsage(error.message) from error


def run_async(connection: Connection, question: Callable[[Client], Awaitable[T]]) -> T:
    """Run ``question`` with a client of ``connection`` and return its answer."""

    async def _run() -> T:
        async with connection.client() as client:
            return await question(client)

    return asyncio.run(_run())


def _data_dir(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Let ``gpustack --data-dir PATH COMMAND`` win over the variable, and ``COMMAND --data-dir PATH`` over both."""
    named = ctx.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    return value if named else given_data_dir(ctx) or value


def _named(data_dir: str) -> bool:
    """Tell whether the data directory was typed; a variable stands there for every command, login or not."""
    ctx = click.get_current_context()
    return bool(data_dir) and (
        ctx.get_parameter_source("data_dir") is ParameterSource.COMMANDLINE or bool(given_data_dir(ctx))
    )


def data_dir_option(command: Command) -> Command:
    """Add ``--data-dir``."""
    return click.option(
        "--data-dir",
        metavar="PATH",
        envvar="GPUSTACK_DATA_DIR",
        default="",
        callback=_data_dir,
        help="Data directory of the GPUStack on this machine.",
    )(command)


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a server, and hand the command a ``target``."""

    @functools.wraps(command)
    def with_target(*args: Any, server: str, api_key: str, data_dir: str, **kwargs: Any) -> Any:
        target = Target(server=server, api_key=api_key, data_dir=data_dir, only_there=_named(data_dir))
        return command(*args, target=target, **kwargs)

    key = click.option(
        "--api-key",
        metavar="KEY",
        envvar="GPUSTACK_API_KEY",
        default="",
        help="API key; the variable GPUSTACK_API_KEY keeps it out of the list of processes.",
    )
    server = click.option(
        "--server",
        metavar="URL",
        envvar="GPUSTACK_SERVER",
        default="",
        help="The server, also by GPUSTACK_SERVER. Otherwise the one on this machine, or the last login.",
    )
    return server(key(data_dir_option(with_target)))


def json_option(command: Command) -> Command:
    """Add ``--json`` as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(command)
