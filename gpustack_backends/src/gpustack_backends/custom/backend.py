"""The backend of engines that users describe."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpustack.plugin import (
    EstimateRequest,
    GpuDevice,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    ModelFacts,
    NoSettings,
    OnWorker,
    Platform,
    Refused,
    ResourceClaim,
    Verdict,
)
from gpustack.plugin.commands import described, fill
from gpustack_backends.custom.memory import Wanted, ways

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")


class Custom(InferenceBackend[NoSettings]):
    """Runs the command that a model, or a backend's description, names.

    Never chosen for a model that names no backend. The engine gets the parameters behind its command; of these
    ``--gpustack-ram``, ``--gpustack-vram`` and ``--gpustack-gpus`` are for GPUStack: they say what to reserve.
    """

    name = "custom"
    settings_type = NoSettings
    #: Of engines whose versions nobody named.
    default_version = "default"
    #: Nobody knows what its metrics are called.
    load_path = ""

    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        """Agree to everything: only who described the engine knows what it serves."""
        return Verdict.yes()

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        """Return what the user says, else the weights, a fifth of them again, and half a GiB."""
        return ways(request.model, Wanted.read(request.parameters), len(request.devices))[-1]

    def ways(self, request: EstimateRequest) -> Sequence[ResourceClaim]:
        """Return the same on one GPU first, then divided evenly over more."""
        return ways(request.model, Wanted.read(request.parameters), len(request.devices))

    def artifact(self, version: str, platform: Platform) -> OnWorker:
        """Return that nothing is fetched: the program is on the worker, or in the image."""
        if not _VERSION.fullmatch(version):
            raise Refused(f"{version!r} is no version; they are made of letters, digits and . + _ -")
        return OnWorker(version=version)

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command with its placeholders filled in, and the parameters behind it."""
        parameters = Wanted.read(request.parameters).rest
        argv = described(request) if request.run_command else (request.command,)
        return LaunchPlan(argv=(*argv, *fill(request, *parameters)))
