"""``gpustack explain``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gpustack.cli import complete
from gpustack.cli.output import clean, coloured, emit_json
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.text import human_bytes, plural

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas.explanations import (
        FilterCount,
        InstanceExplanation,
        ModelExplanation,
        NearMiss,
        Remedy,
        Seat,
    )

_MIB = 1 << 20


@click.command("explain")
@click.argument("model", shell_complete=complete.models)
@server_options
@json_option
def command(model: str, target: Target, as_json: bool) -> None:
    """Show why a model runs where it runs, or why it waits.

    Of a copy that waits: how many workers each filter left, what is missing on the nearest ones, and what would make it
    fit. Each of those was tried. Exits with 1 when some copy has no place.
    """
    told = target.ask(lambda client: _look(client, model))
    if as_json:
        emit_json(told.model_dump(mode="json"))
    else:
        for line in lines(told):
            click.echo(line)
    if any(each.outcome in ("waiting", "refused") for each in told.instances):
        raise click.exceptions.Exit(1)


async def _look(client: Client, name: str) -> ModelExplanation:
    from gpustack.cli.names import model_named

    return await client.explain((await model_named(client, name)).id)


def lines(told: ModelExplanation) -> Iterator[str]:
    """Yield the explanation as lines for people; copies that wait for the same reason are told of once."""
    name = clean(told.model_name)
    head = f"{name}: {told.ready_replicas} of {told.replicas} ready"
    yield click.style(head, bold=True) if coloured() else head
    if not told.instances:
        yield "  no copy of it is wanted" if told.replicas == 0 else "  it has no copies yet"
    groups: dict[str, list[InstanceExplanation]] = {}
    for each in told.instances:
        alike = (
            each.instance_name
            if each.seats and each.outcome == "placed"
            else f"{each.outcome} {each.summary}"
        )
        groups.setdefault(alike, []).append(each)
    for group in groups.values():
        yield ""
        yield from _instance(group)


def _instance(group: list[InstanceExplanation]) -> Iterator[str]:
    one, names = group[0], ", ".join(clean(each.instance_name) for each in group)
    yield f"{names}: {clean(one.summary)}"
    engine = " ".join(filter(None, [one.backend, one.backend_version]))
    if one.outcome == "placed":
        for seat in one.seats:
            yield f"  {_seat(seat)}" + (f", with {clean(engine)}" if engine else "")
    for reason in one.reasons:
        yield f"  - {clean(reason)}"
    yield from _filters(one.workers, one.filters)
    yield from _near_misses(one)
    yield from _remedies(one.remedies, waits=one.outcome in ("waiting", "refused"))
    if one.decided_at is not None and one.outcome == "placed":
        again = {True: ", and would be again", False: "; decided again it would be another", None: ""}
        yield f"  decided {one.decided_at:%Y-%m-%d %H:%M:%S} UTC{again[one.replayed]} (record {one.decision_id})"


def _filters(workers: int, filters: list[FilterCount]) -> Iterator[str]:
    left = [each for each in filters if each.matched < each.asked]
    if left:
        yield f"  of {plural(workers, 'worker')}:"
    for each in left:
        yield f"    {each.matched} of {each.asked} {clean(each.name)}"


def _near_misses(one: InstanceExplanation) -> Iterator[str]:
    if not one.near_misses:
        return
    yield "  nearest:"
    for each in one.near_misses:
        yield f"    {clean(each.worker_name)}: {clean(each.reason)}"
        if short := _short(each):
            yield f"      {short}"
    if (more := one.workers - len(one.near_misses)) > 0:
        yield f"    and {plural(more, 'worker')} more"


def _short(miss: NearMiss) -> str:
    parts = [f"GPU {each.index} is {each.missing_mib} MiB short" for each in miss.gpus]
    if miss.ram_missing_mib:
        parts.append(f"RAM is {miss.ram_missing_mib} MiB short")
    return ", ".join(parts)


def _remedies(remedies: list[Remedy], *, waits: bool) -> Iterator[str]:
    if not remedies:
        if waits:
            yield "  nothing that was tried would make it fit"
        return
    yield "  it would fit:" if any(each.seats for each in remedies) else "  it may fit:"
    for each in remedies:
        there = "; ".join(_seat(seat) for seat in each.seats)
        yield f"    {clean(each.what)}, on {there}" if there else f"    {clean(each.what)}"
        for move in each.moves:
            to = "; ".join(_seat(seat) for seat in move.to)
            yield f"      {clean(move.instance_name)} would go to {to}"
        if each.backend_parameters is not None:
            yield f"      parameters: {clean(shlex.join(each.backend_parameters)) or '(none)'}"


def _seat(seat: Seat) -> str:
    parts = [f"{human_bytes(seat.ram_mib * _MIB)} RAM"] if seat.ram_mib else []
    if seat.vram_mib:
        gpus = ",".join(str(each) for each in sorted(seat.vram_mib))
        parts.append(f"{human_bytes(sum(seat.vram_mib.values()) * _MIB)} on GPU {gpus}")
    return f"worker {clean(seat.worker_name)}" + (f" ({', '.join(parts)})" if parts else "")
