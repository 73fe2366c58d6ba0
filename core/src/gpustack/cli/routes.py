"""``gpustack routes``."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import click

from gpustack.cli import complete
from gpustack.cli.names import meant
from gpustack.cli.output import age, emit_documents, emit_json, emit_table, note
from gpustack.cli.target import Target, json_option, server_options
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import InvalidInput, NotFound
from gpustack.kit.text import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpustack.client import Client
    from gpustack.schemas import ModelRoutePublic, ModelRouteTargetPublic

_TARGET = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="MODEL[=WEIGHT]",
    help="A model that answers, and its share relative to the others'; 100 without one. May be repeated.",
)
_FALLBACK_ON = click.option(
    "--fallback-on",
    multiple=True,
    metavar="STATUS",
    help="An engine's error in whose place the fallback is asked, too: 4xx, 5xx, or one such as 429. May be repeated; "
    '"" alone is none.',
)


@click.group("routes")
def command() -> None:
    """List, create, change and remove the names that requests ask for.

    Such a name is a model route. Every model has one of its own; others give several models a name together, such as
    an old and a new one that are to share the requests.
    """


@command.command("list")
@server_options
@json_option
def list_routes(target: Target, as_json: bool) -> None:
    """List model routes, models' own ones included."""
    routes = target.ask(lambda client: client.routes.list_all(sort_by="name"))
    if as_json:
        emit_documents(routes)
        return
    emit_table(
        ["NAME", "ALIASES", "TARGETS", "FALLBACK", "AGE"],
        map(_row, routes),
        empty="No model routes yet; `gpustack deploy` makes one with each model.",
    )


def _row(route: ModelRoutePublic) -> tuple[str, ...]:
    counted = [each for each in route.targets if not each.is_fallback]
    total = sum(each.weight for each in counted)
    spare = next((each for each in route.targets if each.is_fallback), None)
    return (
        route.name,
        ", ".join(route.aliases) or "-",
        ", ".join(f"{_shown(each)} {_share(each.weight, total)}" for each in counted) or "-",
        "-" if spare is None else " ".join([_shown(spare), *_told(route.fallback_status_codes)]),
        age(route.created_at),
    )


def _told(codes: Sequence[str]) -> list[str]:
    return [f"(on {', '.join(codes)})"] if codes else []


def _shown(target: ModelRouteTargetPublic) -> str:
    return target.model_name if target.model_id is not None else f"{target.model_name} (removed)"


def _share(weight: int, total: int) -> str:
    part = 100 * weight / total if total else 0.0
    return "<1%" if 0 < part < 1 else f"{part:.0f}%"


@command.command("create")
@click.argument("name")
@_TARGET
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME", help="Another name of the same; may be repeated."
)
@click.option("--fallback", metavar="MODEL", help="The model that is asked when no target can answer.")
@_FALLBACK_ON
@click.option("--description", default="", help="What it is for.")
@server_options
@json_option
def create_route(
    name: str, targets: tuple[str, ...], aliases: tuple[str, ...], fallback: str | None,
    fallback_on: tuple[str, ...], description: str, target: Target, as_json: bool,
) -> None:  # fmt: skip
    """Have models answer under a name of its own.

    gpustack routes create chat --target chat-v1=90 --target chat-v2=10
    """
    from gpustack.schemas import ModelRouteCreate

    if not targets:
        raise click.UsageError("a route needs a model that answers; name one with --target MODEL")
    fields = {
        "name": name,
        "description": description,
        "aliases": list(aliases),
        "targets": _targets(targets, fallback or ""),
    }
    if fallback_on:
        fields["fallback_status_codes"] = _codes(fallback_on)
    wanted = _checked(lambda: ModelRouteCreate.model_validate(fields))
    route = target.ask(lambda client: client.routes.create(wanted), changes=True)
    if as_json:
        emit_json(route.model_dump(mode="json"))
    else:
        click.echo(f"Created {route.name}.")


@command.command("update")
@click.argument("route", shell_complete=complete.routes)
@click.option("--name", metavar="NAME", help="Another name for it.")
@_TARGET
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME",
    help='May be repeated. Takes the place of all it had; "" alone leaves none.',
)
@click.option("--fallback", metavar="MODEL", help='Asked when no target can answer; "" leaves none.')
@_FALLBACK_ON
@click.option("--description", metavar="TEXT", help="What it is for.")
@server_options
@json_option
def update_route(
    route: str, name: str | None, targets: tuple[str, ...], aliases: tuple[str, ...], fallback: str | None,
    fallback_on: tuple[str, ...], description: str | None, target: Target, as_json: bool,
) -> None:  # fmt: skip
    """Change a model route.

    What is not named stays; targets that are named take the place of all it had, but for the fallback.
    """
    fields: dict[str, Any] = {}
    if name is not None:
        fields["name"] = name
    if description is not None:
        fields["description"] = description
    if aliases:
        fields["aliases"] = [] if aliases == ("",) else list(aliases)
    if fallback_on:
        fields["fallback_status_codes"] = _codes(fallback_on)
    if not (fields or targets or fallback is not None):
        raise click.UsageError("nothing is to change; name what is, such as --target MODEL=10")
    _targets(targets, fallback or "")  # a slip is told before anybody is asked
    changed = target.ask(lambda client: _update(client, route, fields, targets, fallback), changes=True)
    if as_json:
        emit_json(changed.model_dump(mode="json"))
    else:
        click.echo(f"Changed {changed.name}.")


async def _update(
    client: Client, named: str, fields: dict[str, Any], targets: tuple[str, ...], fallback: str | None
) -> ModelRoutePublic:
    from gpustack.schemas import ModelRoutePatch

    route = await _route_named(client, named)
    if targets or fallback is not None:
        spare = next((each.model_name for each in route.targets if each.is_fallback), "")
        spare = spare if fallback is None else fallback
        given = targets or [
            f"{each.model_name}={each.weight}"
            for each in route.targets
            if not each.is_fallback and each.model_name != spare
        ]
        fields = {**fields, "targets": _targets(given, spare)}
    changes = _checked(lambda: ModelRoutePatch.model_validate(fields))
    return await client.routes.patch(route.id, changes)


@command.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=complete.routes)
@server_options
@json_option
def remove_routes(names: tuple[str, ...], target: Target, as_json: bool) -> None:
    """Remove model routes; the models go on."""
    removed, alone = target.ask(lambda client: _remove(client, names), changes=True)
    if as_json:
        emit_documents(removed)
    else:
        for route in removed:
            click.echo(f"Removed {route.name}.")
    for model in alone:
        note(f"No request can reach model {model} any more; `gpustack routes create` gives it a name.")


async def _remove(client: Client, names: tuple[str, ...]) -> tuple[list[ModelRoutePublic], list[str]]:
    """Find all before the first is removed, so that a slip of the pen changes nothing.

    Return the routes, and the models that no route leads to any more.
    """
    routes = await client.routes.list_all()
    chosen = {route.id: route for route in [_named_itself(routes, name) for name in names]}
    for number in chosen:
        await client.routes.delete(number)
    led = {
        each.model_name for route in chosen.values() for each in route.targets if each.model_id is not None
    }
    left = {each.model_name for route in await client.routes.list_all() for each in route.targets}
    return list(chosen.values()), sorted(led - left)


def _named_itself(routes: Sequence[ModelRoutePublic], name: str) -> ModelRoutePublic:
    """Return the route with that name. Raises InvalidInput for an alias, which the route would go with."""
    route = _found(routes, name)
    if name == route.name:
        return route
    kept = [f"--alias {shlex.quote(each)}" for each in route.aliases if each != name] or ['--alias ""']
    command = f"gpustack routes update {shlex.quote(route.name)} {' '.join(kept)}"
    raise InvalidInput(
        f"{shorten(name, 160)!r} is an alias of the model route {route.name!r}, and nothing "
        f"was removed: `{command}` takes the alias away, `gpustack routes rm {shlex.quote(route.name)}` the whole route"
    )


async def _route_named(client: Client, name: str) -> ModelRoutePublic:
    """Return the route with that name or alias. Raises NotFound with the nearest names."""
    return _found(await client.routes.list_all(), name)


def _found(routes: Sequence[ModelRoutePublic], name: str) -> ModelRoutePublic:
    for route in routes:
        if name in (route.name, *route.aliases):
            return route
    known = [each for route in routes for each in (route.name, *route.aliases)]
    raise NotFound(
        f"there is no model route {shorten(name, 160)!r}{meant(name, known)}; see `gpustack routes list`"
    )


def _targets(given: Sequence[str], fallback: str) -> list[dict[str, Any]]:
    """Return what ``--target`` and ``--fallback`` say."""
    found = []
    for text in given:
        model, equals, weight = text.rpartition("=")
        if not equals:
            model, weight = text, "100"
        if not model or not weight.isascii() or not weight.isdigit() or len(weight) > 5:
            raise WrongUsage(
                f"--target {shorten(text, 160)!r} is not MODEL or MODEL=WEIGHT, such as chat-v2=10"
            )
        found.append({"model_name": model, "weight": int(weight)})
    if fallback:
        found.append({"model_name": fallback, "is_fallback": True})
    return found


def _codes(given: tuple[str, ...]) -> list[str]:
    """Return what ``--fallback-on`` says; "" alone is none. Raises WrongUsage for what is no error of an engine."""
    codes = [] if given == ("",) else [each.lower() for each in given]
    for each in codes:
        if not re.fullmatch("[45](xx|[0-9]{2})", each, re.ASCII):
            raise WrongUsage(f"--fallback-on {shorten(each, 160)!r} is not 4xx, 5xx, or one such as 429")
    return codes


def _checked(make: Callable[[], Any]) -> Any:
    """Return what ``make`` makes. Raises WrongUsage for what no route can be."""
    from pydantic import ValidationError

    try:
        return make()
    except ValidationError as error:
        problem = error.errors()[0]
        what = {"aliases": "--alias", "targets": "--target"}.get(str(problem["loc"][0]), "name")
        if problem["type"] == "string_pattern_mismatch":
            raise WrongUsage(
                f"{what} {shorten(str(problem['input']), 160)!r}: a name is made of letters, digits and . _ : / - with a "
                "letter or digit at both ends, 128 characters at most"
            ) from error
        raise WrongUsage(f"{what}: {problem['msg'].removeprefix('Value error, ')}") from error
