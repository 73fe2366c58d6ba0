"""``gpustack show``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from gpustack.cli import complete
from gpustack.cli.names import state_of, workers_of
from gpustack.cli.output import age, clean, coloured, emit_json, emit_table
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.errors import NotFound
from gpustack.kit.text import human_bytes

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import InstanceEventPublic, ModelInstancePublic, ModelPublic

#: What lately happened.
_EVENTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All that is known about one model."""

    url: str
    model: ModelPublic
    instances: list[ModelInstancePublic]
    #: The newest first.
    events: list[InstanceEventPublic]

    def document(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {
            **self.model.model_dump(mode="json"),
            "instances": [each.model_dump(mode="json") for each in self.instances],
            "events": [each.model_dump(mode="json") for each in self.events],
        }


@click.command("show")
@click.argument("model", shell_complete=complete.models)
@server_options
@json_option
def command(model: str, target: Target, as_json: bool) -> None:
    """Show everything about one model.

    How it is described, what its copies do and why, what happened lately, and how to call it.
    """
    shown = target.ask(lambda client: _look(client, model))
    if as_json:
        emit_json(shown.document())
        return
    _print(shown)


async def _look(client: Client, name: str) -> Shown:
    from gpustack.cli.names import model_named

    model = await model_named(client, name)
    instances = await client.instances.list_all(model_id=model.id, sort_by="name")
    events: list[InstanceEventPublic] = []
    try:
        events = (await client.instance_events.list(per_page=_EVENTS, model_id=model.id)).items
    except NotFound:
        # A server of the version before keeps none.
        events = []
    return Shown(url=client.base_url, model=model, instances=instances, events=events)


def _print(shown: Shown) -> None:
    model = shown.model
    click.echo(click.style(clean(model.name), bold=True) if coloured() else clean(model.name))
    for name, value in _facts(model):
        click.echo(f"  {name:<12}{clean(value)}")
    click.echo("")
    _print_instances(shown)
    if shown.events:
        from gpustack.cli.events import Lines

        click.echo("\nLately (`gpustack events` shows all)")
        Lines(indent="  ").show(shown.events[::-1])
    click.echo(f"\nCall it  (KEY: `gpustack keys create NAME`)\n  {request(shown.url, model)}")


def _facts(model: ModelPublic) -> Iterator[tuple[str, str]]:
    from gpustack.schemas import source_name

    if model.description:
        yield "About", model.description
    yield "Ready", f"{model.ready_replicas} of {model.replicas}"
    if (limits := model.scaled_between) is not None:
        yield "Scaled", f"from {limits[0]} to {limits[1]} copies, by what is asked of it"
    if model.priority:
        yield "Priority", str(model.priority)
    yield "Source", source_name(model)
    yield "Kind", ", ".join(model.categories) or "not known before its files are read"
    version = model.backend_version or "default version"
    yield "Backend", f"{model.backend}, {version}" if model.backend else f"chosen by the model, {version}"
    if model.run_command:
        yield "Command", model.run_command
    if model.image_name:
        yield "Image", model.image_name
    if model.backend_parameters:
        yield "Parameters", shlex.join(model.backend_parameters)
    if model.backend_packages:
        yield "Packages", ", ".join(model.backend_packages)
    if model.env:
        # Values may be secrets; --json has them.
        yield "Variables", ", ".join(model.env)
    selector = ", ".join(f"{key}={value}" for key, value in model.worker_selector.items())
    yield "Placement", f"{model.placement_strategy}{' on workers with ' + selector if selector else ''}"
    if (chosen := model.gpu_selector) is not None:
        each = f", {chosen.gpus_per_replica} for each copy" if chosen.gpus_per_replica else ""
        yield "GPUs", f"only {', '.join(chosen.gpu_ids)}{each}"
    rollout = model.rollout
    yield (
        "Exchange",
        f"{rollout.max_surge} more, {rollout.max_unavailable} fewer at a time; {rollout.drain_seconds} s to drain",
    )
    yield "Age", f"{age(model.created_at)}, changed {age(model.updated_at)} ago"


def _print_instances(shown: Shown) -> None:
    model = shown.model
    emit_table(
        ["COPY", "STATE", "SINCE", "WORKER", "PORT", "ENGINE", "MEMORY", "RESTARTS"],
        (
            (
                each.name,
                _state(each, model),
                age(each.state_since),
                workers_of(each),
                each.port or "-",
                " ".join(filter(None, [each.backend, each.backend_version])) or "-",
                _memory(each),
                each.restart_count,
            )
            for each in shown.instances
        ),
        empty="No copy of it runs, and none is wanted." if model.replicas == 0 else "It has no copies yet.",
    )
    for each in shown.instances:
        if each.state_message and state_of(each) != "running":
            text = clean(each.state_message, keep="\n\t").replace("\n", "\n    ")
            click.echo(f"\n  {each.name} is {state_of(each)}: {text}")
    for each in shown.instances:
        _print_members(each)


def _print_members(instance: ModelInstancePublic) -> None:
    """Say where the members of a copy over several workers are, and how."""
    if not instance.members:
        return
    click.echo(f"\n  {instance.name} spans {len(instance.members)} workers:")
    for each in instance.members:
        role = "leads" if each.number == 0 else f"member {each.number}"
        ports = f", ports {', '.join(map(str, each.ports))}" if each.ports else ""
        where = f"{each.host or each.worker_ip}{ports}"
        click.echo(f"    {clean(each.worker_name)}  {role}, {each.state}  ({clean(where)})")


def _state(instance: ModelInstancePublic, model: ModelPublic) -> str:
    old = (
        instance.draining_since is None
        and instance.worker_id is not None
        and instance.spec_digest not in ("", model.spec_digest)
    )
    return f"{instance.state} (to be exchanged)" if old else state_of(instance)


def _memory(instance: ModelInstancePublic) -> str:
    claim = instance.computed_resource_claim
    parts = [f"{human_bytes(claim.ram)} RAM"] if claim.ram else []
    if claim.vram:
        gpus = ",".join(map(str, sorted(claim.vram)))
        parts.append(f"{human_bytes(sum(claim.vram.values()))} on GPU {gpus}")
    return f"{', '.join(parts)}{_peak(instance)}" if parts else "-"


def _peak(instance: ModelInstancePublic) -> str:
    """Return the most that was measured of it, beside what it claims."""
    took = instance.memory
    sizes = [human_bytes(each) for each in (took.peak_ram, took.peak_vram) if each]
    return f"; took {' and '.join(sizes)}" if sizes else ""


def request(url: str, model: ModelPublic) -> str:
    """Return a request to paste, but for the key."""
    if "reranker" in model.categories:
        path, body = "rerank", f'{{"model": "{model.name}", "query": "…", "documents": ["…", "…"]}}'
    elif "embedding" in model.categories:
        path, body = "embeddings", f'{{"model": "{model.name}", "input": "Hello"}}'
    else:
        message = '{"role": "user", "content": "Hello"}'
        path, body = "chat/completions", f'{{"model": "{model.name}", "messages": [{message}]}}'
    return (
        f"curl {url}/v1/{path} -H 'Authorization: Bearer KEY' -H 'Content-Type: application/json' -d '{body}'"
    )
