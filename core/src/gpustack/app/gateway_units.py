"""The supervisor's units of the gateway: what its plugin has declared, processes of the data path and programs.

Also used by the suite that holds a gateway's contract with traffic, so that what it holds is what runs.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpustack.app.children import Child, PythonChild
from gpustack.app.programs import Program
from gpustack.settings.gateway import ChosenGateway

Say = Callable[[str], None]


def chosen(settings: Mapping[str, Any]) -> ChosenGateway:
    """Return what described settings have chosen."""
    return ChosenGateway.model_validate(settings["gateway"])


def gateway_units(
    settings: dict[str, Any],
    *,
    mark: str,
    sockets: dict[str, int],
    api_port: Callable[[], int],
    say: Say,
    changed: Callable[[], None],
) -> list[Child]:
    """Return the units, not started. All processes of the data path accept on the same ``sockets``, the public ones.

    ``settings`` are read again whenever such a process is configured; ``mark`` is what it shows to the server, which
    answers on ``api_port()`` of this machine.
    """
    gateway = chosen(settings)
    log_dir, seats = Path(settings["log_dir"]), gateway.data_path
    life = f"{os.getpid()}-{secrets.token_hex(4)}"

    def of_the_data_path(seat: int) -> PythonChild:
        async def configuration() -> dict[str, Any]:
            known = {"settings": settings, "mark": mark, "seat": seat, "seats": seats, "life": life}
            return {**known, "api_port": api_port()}

        name = _numbered("gateway", seat)
        return PythonChild(
            name,
            Path(settings["data_dir"]),
            configuration=configuration,
            sockets=sockets,
            log_path=log_dir / f"{name}.log",
            say=say,
            changed=changed,
            outlives=True,
        )

    units: list[Child] = [of_the_data_path(seat) for seat in range(seats)]
    for number, plan in enumerate(gateway.programs):
        name = _numbered(f"proxy-{gateway.name}", number)
        place = Path(settings["data_dir"]) / "gateway" / name
        units.append(
            Program(name, plan, place=place, log_path=log_dir / f"{name}.log", say=say, changed=changed)
        )
    return units


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}-{number + 1}"
