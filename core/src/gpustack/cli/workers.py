"""``gpustack workers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpustack.cli.output import age, emit_documents, emit_table, first_line
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.text import human_bytes

if TYPE_CHECKING:
    from gpustack.schemas import MemoryStatus, WorkerPublic


@click.command("workers")
@server_options
@json_option
def command(target: Target, as_json: bool) -> None:
    """List workers."""
    workers = target.ask(lambda client: client.workers.list_all(sort_by="name"))
    if as_json:
        emit_documents(workers)
        return
    emit_table(
        ["NAME", "STATE", "ADDRESS", "CORES", "MEMORY USED", "GPUS", "VERSION", "HEARTBEAT", "MESSAGE"],
        (
            (
                each.name,
                each.state,
                each.ip,
                each.status.cpu.total or "-",
                _memory(each.status.memory),
                _gpus(each),
                each.version,
                age(each.heartbeat_time),
                first_line(each.state_message),
            )
            for each in workers
        ),
        empty="No worker has joined.",
    )


def _memory(memory: MemoryStatus) -> str:
    return f"{human_bytes(memory.used)} of {human_bytes(memory.total)}" if memory.total else "-"


def _gpus(worker: WorkerPublic) -> str:
    counts: dict[str, int] = {}
    for gpu in worker.status.gpu_devices:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    return ", ".join(f"{count}x {name}" for name, count in counts.items()) or "-"
