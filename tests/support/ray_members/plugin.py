"""The backend ``ray-members``, whose engine is the program beside this file, on a Ray of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpustack.plugin import (
    Arrangement,
    EstimateRequest,
    GpuDevice,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    ModelFacts,
    NoSettings,
    PipxPackage,
    Platform,
    Refused,
    ResourceClaim,
    Verdict,
    hookimpl,
)
from gpustack.worker.runners.ray import RAY

GIB = 1 << 30


class RayMembers(InferenceBackend[NoSettings]):
    """Takes 10 GiB, as it says: more than one of the machines has."""

    name = "ray-members"
    settings_type = NoSettings
    default_version = RAY.version

    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        """Agree."""
        return Verdict.yes()

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        """Return the same for every model."""
        return ResourceClaim(ram=10 * GIB)

    def members(
        self, request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]
    ) -> list[ResourceClaim]:
        """Divide it evenly."""
        return [ResourceClaim(ram=10 * GIB // len(workers)) for _ in workers]

    def arrangement(self, request: LaunchRequest) -> Arrangement:
        """Ask for Ray."""
        return Arrangement(ports=1, ray=True)

    def artifact(self, version: str, platform: Platform) -> PipxPackage:
        """Return the environment that the program runs in."""
        return RAY

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        """Refuse: it is for several workers."""
        raise Refused("it is for several workers")

    def launch_member(self, request: LaunchRequest) -> LaunchPlan:
        """Run the program; followers are nodes of Ray and nothing else."""
        python = Path(request.command).resolve().parent / "python"
        program = Path(__file__).with_name("program.py")
        return LaunchPlan(
            argv=(
                *(str(python), str(program), "--host", request.host, "--port", str(request.port)),
                *("--model", request.model_name, "--members", str(len(request.members))),
            )
        )


@hookimpl
def register_inference_backends() -> Iterable[type[InferenceBackend[Any]]]:
    """Return the one backend there is here."""
    return [RayMembers]
