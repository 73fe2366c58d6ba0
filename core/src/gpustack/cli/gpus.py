"""``gpustack gpus``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpustack.cli.output import emit_documents, emit_table
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.text import human_bytes

if TYPE_CHECKING:
    from gpustack.schemas import GpuDevicePublic


@click.command("gpus")
@server_options
@json_option
def command(target: Target, as_json: bool) -> None:
    """List the GPUs of all workers.

    ID is what `gpustack deploy --gpu` takes, when a model is to run on certain ones.
    """
    gpus = target.ask(lambda client: client.gpu_devices.list_all())
    gpus.sort(key=lambda gpu: (gpu.worker_name, gpu.index))
    if as_json:
        emit_documents(gpus)
        return
    emit_table(
        ["ID", "NAME", "MEMORY USED", "BY OTHERS", "BUSY", "TEMPERATURE", "POWER", "LINKS", "NODE", "STATE"],
        (
            (
                each.id,
                each.name,
                f"{human_bytes(each.memory.used)} of {human_bytes(each.memory.total)}",
                "-" if each.memory.others is None else human_bytes(each.memory.others),
                f"{each.core_utilization_rate:.0f} %",
                f"{each.temperature:.0f} °C" if each.temperature else "-",
                _power(each),
                each.link_group or "-",
                "-" if each.numa_node is None else each.numa_node,
                "; ".join(each.faults) or "ok",
            )
            for each in gpus
        ),
        empty="No worker has a GPU that its detectors find; models run on the processor.",
    )


def _power(gpu: GpuDevicePublic) -> str:
    if not gpu.power:
        return f"{gpu.power_used:.0f} W" if gpu.power_used else "-"
    return f"{gpu.power_used:.0f} of {gpu.power:.0f} W"
