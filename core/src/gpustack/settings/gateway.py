"""The gateway that the settings choose, as the processes tell each other of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class GatewayProcess(BaseModel):
    """One process that a gateway has declared: of GPUStack's data path, or a program with its command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["data_path", "program"] = "data_path"
    argv: tuple[str, ...] = ()
    #: Added to a small clean environment.
    env: dict[str, str] = {}
    cwd: str | None = None


class ChosenGateway(BaseModel):
    """A gateway by its name, empty where the server carries the requests, and what is to be run for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    processes: tuple[GatewayProcess, ...] = ()

    @property
    def data_path(self) -> int:
        """How many processes of the data path there are to be."""
        return sum(1 for each in self.processes if each.kind == "data_path")

    @property
    def programs(self) -> tuple[GatewayProcess, ...]:
        """The programs among them."""
        return tuple(each for each in self.processes if each.kind == "program")


#: The server carries the requests itself.
NO_GATEWAY = ChosenGateway()
