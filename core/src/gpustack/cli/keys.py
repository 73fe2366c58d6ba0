"""``gpustack keys``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from gpustack.cli.output import age, emit_documents, emit_json, emit_table, note
from gpustack.cli.target import Target, json_option, server_options
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import GPUStackError, InvalidInput, NotFound
from gpustack.kit.text import shorten

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import ApiKeyCreate, ApiKeyCreated, ApiKeyPublic

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _seconds(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Return a time such as ``30d`` in seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip().lower())
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a time such as 12h, 30d or 4w", ctx, parameter)
    return int(found[1]) * _UNITS[found[2]]


@click.group("keys")
def command() -> None:
    """List, create and revoke API keys."""


@command.command("list")
@server_options
@json_option
def list_keys(target: Target, as_json: bool) -> None:
    """List your API keys, without their secrets."""
    keys = target.ask(lambda client: client.keys.list_all(sort_by="name"))
    if as_json:
        emit_documents(keys)
        return
    emit_table(
        ["ID", "NAME", "KEY", "MODELS", "EXPIRES", "AGE"],
        (
            (
                key.id,
                key.name,
                f"gpustack_{key.access_key}_…",
                ", ".join(key.allowed_model_names) or "all",
                f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "never",
                age(key.created_at),
            )
            for key in keys
        ),
        empty="No API keys yet; `gpustack keys create NAME` makes one.",
    )


@command.command("create")
@click.argument("name")
@click.option(
    "--expires",
    callback=_seconds,
    metavar="TIME",
    help="For how long it works: 12h, 30d, 4w. For ever otherwise.",
)
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Allow only this model; may be repeated."
)
@click.option("--description", default="", help="What it is for.")
@server_options
@json_option
def create_key(
    name: str, expires: int | None, models: tuple[str, ...], description: str, target: Target, as_json: bool
) -> None:
    """Create an API key and print it, this once.

    The key alone goes to standard output: KEY=$(gpustack keys create NAME).
    """
    from pydantic import ValidationError

    from gpustack.schemas import ApiKeyCreate

    try:
        wanted = ApiKeyCreate(
            name=name, description=description, expires_in=expires, allowed_model_names=list(models)
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise WrongUsage(f"{problem['loc'][0]}: {problem['msg']}") from error
    key, unknown = target.ask(lambda client: _create(client, wanted), changes=True)
    for model in unknown:
        note(f"Warning: there is no model {shorten(model, 160)!r} yet; the key allows it once there is.")
    if as_json:
        emit_json(key.model_dump(mode="json"))
        return
    note(f"Created {key.name}. Keep the key: it is shown this once.")
    click.echo(key.value)


async def _create(client: Client, wanted: ApiKeyCreate) -> tuple[ApiKeyCreated, list[str]]:
    """Return the key, and those of its models that there are none of."""
    key = await client.keys.create(wanted)
    if not wanted.allowed_model_names:
        return key, []
    try:
        known = {model.name for model in await client.models.list_all()} | await client.routes.names()
    except GPUStackError:
        # The key is made and must be shown; who may not see models cannot be warned.
        return key, []
    return key, [name for name in wanted.allowed_model_names if name not in known]


@command.command("revoke")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--close-streams", is_flag=True, help="Also end the answers that they are getting just now.")
@server_options
@json_option
def revoke_keys(names: tuple[str, ...], close_streams: bool, target: Target, as_json: bool) -> None:
    """Revoke API keys by name or id; they stop working at once."""
    revoked = target.ask(lambda client: _revoke(client, names, close_streams), changes=True)
    if as_json:
        emit_documents(revoked)
        return
    for key in revoked:
        click.echo(f"Revoked {key.name}.")


async def _revoke(client: Client, names: tuple[str, ...], close_streams: bool) -> list[ApiKeyPublic]:
    """Find all before the first is revoked, so that a slip of the pen changes nothing."""
    keys = await client.keys.list_all()
    chosen: dict[int, ApiKeyPublic] = {}
    for name in names:
        found = [key for key in keys if key.name == name] or [key for key in keys if str(key.id) == name]
        if not found:
            raise NotFound(f"there is no API key {name!r}; see `gpustack keys list`")
        if len(found) > 1:
            numbers = ", ".join(str(key.id) for key in found)
            raise InvalidInput(f"several API keys are called {name!r}; name one by its id: {numbers}")
        chosen[found[0].id] = found[0]
    for number in chosen:
        await client.keys.revoke(number, close_streams=close_streams)
    return list(chosen.values())
