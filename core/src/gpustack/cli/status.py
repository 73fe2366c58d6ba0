"""``gpustack status``."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpustack.cli.output import clean, duration, emit_json, note
from gpustack.cli.target import Connection, Target, data_dir_option, json_option, run_async
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.kit.text import human_bytes, plural

if TYPE_CHECKING:
    from gpustack.cli.processes import Seen
    from gpustack.client import Client
    from gpustack.client.local import RunState
    from gpustack.schemas import FleetPublic, ModelPublic
    from gpustack.schemas.gateway import GatewayPublic


#: What each port is for.
_PORTS = {
    "http": "API",
    "https": "API, TLS",
    "api": "API, this machine only",
    "door": "worker",
    "worker": "worker, inner",
}


@click.command("status")
@data_dir_option
@json_option
def command(data_dir: str, as_json: bool) -> int:
    """Show what runs on this machine.

    The exit status is 0 when GPUStack is ready, 1 when it runs and is not ready, 3 when it does not run.
    """
    from gpustack.client.local import NothingRuns, running_state

    directory = Target(data_dir=data_dir).directory
    try:
        state = running_state(directory)
    except NothingRuns:
        _show_what_is_left(directory, as_json=as_json)
        if not as_json:
            raise
        return 3
    return _show(state, directory, as_json=as_json)


def _listed(what: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(what[:-1]), what[-1])))


def _show_what_is_left(directory: Path, *, as_json: bool) -> None:
    """Show what a crash has left running where no supervisor is."""
    from gpustack.cli import processes

    doors, engines = processes.doors(directory), len(list(processes.engines(directory)))
    gateways = processes.gateways(directory)
    if as_json:
        left = {"doors": doors, "gateways": gateways, "engines": engines}
        emit_json({"running": False, "ready": False, "data_dir": str(directory), "left": left})
    elif doors or gateways or engines:
        what = [
            *(["the gateway"] if gateways else []),
            *(["the door"] if doors else []),
            *([plural(engines, "engine")] if engines else []),
        ]
        are = "are" if len(what) > 1 or engines > 1 else "is"
        note(
            f"{_listed(what)} of a crash {are} still here; `gpustack start` goes on with that, "
            "`gpustack stop` ends it"
        )


def _show(state: RunState, directory: Path, *, as_json: bool) -> int:
    from gpustack.cli import processes

    children = list(processes.children(state))
    engines = list(processes.engines(directory))
    nothing = (True, None, None, None)
    answers, models, gateway, fleet = nothing if state.server_url else _asked(state, directory)
    ready = answers and state.ready and all(child.state == "ready" for child in children)
    head = processes.supervisor(state)
    update = _update(state, directory)
    if as_json:
        document = _document(state, head, children, engines, ready=ready, models=models)
        told = None if gateway is None else gateway.model_dump(mode="json")
        workers = None if fleet is None else fleet.model_dump()
        emit_json(document | {"update": update, "gateway": told, "workers": workers})
    else:
        _print(state, head, children, engines, ready=ready, models=models, gateway=gateway)
        _print_fleet(fleet)
        _print_update(update)
    return 0 if ready else 1


def _asked(
    state: RunState, directory: Path
) -> tuple[bool, list[ModelPublic] | None, GatewayPublic | None, FleetPublic | None]:
    """Return whether the server says that it is ready, its models, gateway and workers; None for what it does not say."""
    from gpustack.client.local import cli_token

    async def ask(
        client: Client,
    ) -> tuple[bool, list[ModelPublic] | None, GatewayPublic | None, FleetPublic | None]:
        if not await client.ready():
            return False, None, None, None
        models, gateway, fleet = await client.models.list_all(), None, None
        with contextlib.suppress(NotFound):  # a server from before it had one
            gateway = await client.gateway()
        with contextlib.suppress(NotFound):  # a server from before it told of them
            fleet = await client.fleet()
        return True, models, gateway, fleet

    try:
        connection = Connection(url=state.local_url, credential=cli_token(directory), local=True)
        return run_async(connection, ask)
    except GPUStackError:
        # That the server does not answer is an answer here.
        return False, None, None, None


def _gateway_line(gateway: GatewayPublic) -> str:
    """Return how the gateway is; the plain case is short."""
    if gateway.name == "disabled":
        return "Gateway: disabled; the server carries the requests"
    says = "serves at " + ", ".join(gateway.public_urls) if gateway.healthy else "does not serve"
    return clean(f"Gateway: {gateway.name} {says}" + (f": {gateway.reason}" if gateway.reason else ""))


def _print_fleet(fleet: FleetPublic | None) -> None:
    if fleet is None:
        return
    present = {state: count for state, count in fleet.workers.items() if count}
    said = ", ".join(f"{count} {state}" for state, count in present.items())
    click.echo(f"Workers: {sum(present.values())}" + (f" ({said})" if said else ""))
    for line in fleet.notices:
        click.echo(f"Warning: {clean(line)}")


def _update(state: RunState, directory: Path) -> dict[str, Any] | None:
    """Return what the server last heard of newer versions; None when it has heard nothing, or does not ask.

    It is read from the file that the server keeps, so that a server that hangs is not waited for.
    """
    from gpustack.client.local import run_dir

    if state.server_url:
        return None  # left by the server that this machine was before it became another one's worker
    try:
        kept = json.loads((run_dir(directory) / "update.json").read_text(encoding="utf-8"))
        if kept["current_version"] != state.version:
            return None
        texts = {name: clean(str(kept[name])) for name in ("latest_version", "url", "checked_at")}
        return {
            "current_version": state.version,
            "update_available": kept["update_available"] is True,
            **texts,
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _print_update(update: dict[str, Any] | None) -> None:
    if update is not None and update["update_available"]:
        where = f": {update['url']}" if update["url"] else ""
        click.echo(
            f"Update: {update['latest_version']} is available (you run {update['current_version']}){where}"
        )


def _document(
    state: RunState,
    head: Seen,
    children: list[Seen],
    engines: list[Seen],
    *,
    ready: bool,
    models: list[ModelPublic] | None,
) -> dict[str, Any]:
    return {
        "running": True,
        "ready": ready,
        "url": state.url,
        "version": state.version,
        "pid": state.pid,
        "uptime": head.uptime,
        "memory": head.memory,
        "server_url": state.server_url,
        "ports": state.ports,
        "data_dir": str(state.data_dir),
        "log_dir": str(state.log_dir),
        "warnings": list(state.warnings),
        "children": {child.name: child.document() for child in children},
        "engines": {engine.name: engine.document() for engine in engines},
        "models": None if models is None else {"total": len(models), "ready": _ready_count(models)},
    }


def _ready_count(models: list[ModelPublic]) -> int:
    return sum(1 for model in models if model.ready_replicas > 0)


def _print(
    state: RunState,
    head: Seen,
    children: list[Seen],
    engines: list[Seen],
    *,
    ready: bool,
    models: list[ModelPublic] | None,
    gateway: GatewayPublic | None,
) -> None:
    place = f"as a worker of {state.server_url}" if state.server_url else f"at {state.url}"
    click.echo(f"GPUStack {state.version} {'is ready' if ready else 'is not ready'} {place}")
    branches = [(child, 1) for child in children]
    # Engines hang below the worker.
    where = next((place for place, each in enumerate(children, 1) if each.name == "worker"), len(children))
    below = [(engine, 2) for engine in engines]
    branches[where:where] = below
    width = max(len(each.name) + 2 * depth for each, depth in [(head, 0), *branches])
    for each, depth in [(head, 0), *branches]:
        name = clean("  " * depth + each.name).ljust(width)
        click.echo(f"  {name}  {_facts(each)}")
    if state.ports:
        click.echo("Ports: " + ", ".join(_port(name, port) for name, port in state.ports.items()))
    if gateway is not None:
        click.echo(_gateway_line(gateway))
    if models is not None:
        click.echo(f"Models: {len(models)}, answering: {_ready_count(models)}")
    click.echo(f"Data: {state.data_dir}")
    click.echo(f"Logs: {state.log_dir}")
    for line in state.warnings:
        click.echo(f"Warning: {clean(line)}")


def _port(name: str, port: int) -> str:
    return f"{port} ({_PORTS.get(name, name)})"


def _facts(seen: Seen) -> str:
    facts = [seen.state]
    if seen.pid is not None:
        facts.append(f"pid {seen.pid}")
    if seen.uptime is not None:
        facts.append(f"up {duration(seen.uptime)}")
    if seen.memory is not None:
        facts.append(human_bytes(seen.memory))
    if seen.restarts:
        facts.append(plural(seen.restarts, "restart"))
    return ", ".join(facts)
