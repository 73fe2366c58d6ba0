"""``gpustack defragment``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gpustack.cli.output import clean, emit_json
from gpustack.cli.target import Target, json_option, server_options

if TYPE_CHECKING:
    from gpustack.schemas import Defragmentation


@click.command("defragment")
@server_options
@json_option
def command(target: Target, as_json: bool) -> None:
    """Propose moves of copies that would make room.

    First for copies that wait, then for whole GPUs. Each step starts a copy elsewhere and drains the old one once that
    runs, so no request is lost. Nothing is moved by this command.
    """
    found = target.ask(lambda client: client.defragmentation())
    if as_json:
        emit_json(found.model_dump(mode="json"))
        return
    for line in _lines(found):
        click.echo(clean(line))


def _lines(found: Defragmentation) -> Iterator[str]:
    if not found.steps:
        yield "There is nothing to gain by moving copies."
        return
    for number, step in enumerate(found.steps, 1):
        place = _place(step.to_worker, step.to_gpus)
        yield f"{number}. Start {step.instance_name} on {place}, then drain it on {step.from_worker}."
    for room in found.placed:
        yield f"{room.instance_name}, which waits, fits on {_place(room.worker_name, room.gpus)} then."
    for gpu in found.freed_gpus:
        yield f"GPU {gpu.index} of {gpu.worker_name} is free then."


def _place(worker: str, gpus: list[int]) -> str:
    if not gpus:
        return worker
    return f"GPU {', '.join(map(str, gpus))} of {worker}"
