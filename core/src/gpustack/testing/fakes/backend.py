"""The backend ``fake``, whose engine is :mod:`gpustack.testing.fakes.engine`. It stands for any engine; for tests only.

A model is deployed with it like with any other; the engine is made into a package on the spot, so that nothing is
downloaded. Its parameters are those of :class:`~gpustack.testing.fakes.engine.Behaviour`, and two that set what is
reserved: ``--claim-ram=2GiB``, and ``--claim-vram=40GiB`` for all its GPUs together. Where that is more than a worker has,
an instance spans several: its members ask each other about each prompt. ``--first=leader`` says who starts first.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

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
    Probe,
    Refused,
    ResourceClaim,
    Verdict,
    hookimpl,
)
from gpustack.testing.fakes import engine
from gpustack.testing.fakes.sizes import parse_size

COMMAND = "gpustack-fake-engine"

_MODULE = "gpustack_fake_engine"
_MIB = 1 << 20
_PROCESS = 64 * _MIB
_VERSION = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){0,3}((a|b|rc)(0|[1-9]\d*))?")
_CLAIMS = ("--claim-ram", "--claim-vram")
_FIRST = ("any", "leader", "followers")


@dataclass(frozen=True, slots=True)
class _Parameters:
    """The user's parameters: what the engine gets, and what is reserved for it; None leaves that to the model."""

    engine: tuple[str, ...]
    ram: int | None = None
    vram: int | None = None
    first: Literal["any", "leader", "followers"] = "any"

    @classmethod
    def parse(cls, parameters: Iterable[str]) -> Self:
        """Take them apart. Raises Refused for what the engine would not take."""
        passed: list[str] = []
        claims: dict[str, int] = {}
        first = "any"
        try:
            for each in parameters:
                flag, _, text = each.partition("=")
                if flag == "--first" and text in _FIRST:
                    first = text
                    continue
                if flag in _CLAIMS:
                    claims[flag] = parse_size(text)
                else:
                    passed.append(each)
            engine.Behaviour.parse(passed)
        except ValueError as error:
            raise Refused(
                f"{error} (or {' and '.join(_CLAIMS)})" if "no parameter" in str(error) else str(error)
            ) from None
        return cls(tuple(passed), claims.get("--claim-ram"), claims.get("--claim-vram"), first)  # type: ignore[arg-type]  # checked


class FakeBackend(InferenceBackend[NoSettings]):
    """Serves every model, and loads none. Its version may be anything that looks like one."""

    name = "fake"
    settings_type = NoSettings
    default_version = engine.VERSION

    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        """Agree."""
        return Verdict.yes()

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        """Return what the parameters say, or what the weights would take on the first of the devices."""
        wanted = _Parameters.parse(request.parameters)
        weights = request.model.weight_bytes
        if not request.devices or wanted.vram == 0:
            return ResourceClaim(ram=_PROCESS + weights if wanted.ram is None else max(1, wanted.ram))
        vram = max(1, weights) if wanted.vram is None else wanted.vram
        # As few of the devices as hold it.
        room = min(each.memory_total for each in request.devices)
        gpus = min(len(request.devices), -(-vram // max(1, room)))
        return ResourceClaim(ram=_PROCESS if wanted.ram is None else wanted.ram, vram=vram, gpus=gpus)

    def members(
        self, request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]
    ) -> Sequence[ResourceClaim]:
        """Divide what one worker would take, evenly; each member takes all GPUs that it is shown."""
        wanted, weights = _Parameters.parse(request.parameters), request.model.weight_bytes
        count = len(workers)
        if all(workers) and wanted.vram != 0:
            vram = -(-max(1, weights if wanted.vram is None else wanted.vram) // count)
            return [ResourceClaim(ram=_PROCESS, vram=vram, gpus=len(each)) for each in workers]
        ram = _PROCESS + weights if wanted.ram is None else max(1, wanted.ram)
        return [ResourceClaim(ram=-(-ram // count)) for _ in workers]

    def arrangement(self, request: LaunchRequest) -> Arrangement:
        """Return what ``--first`` says, with a port for each member."""
        return Arrangement(ports=1, first=_Parameters.parse(request.parameters).first)

    def launch_member(self, request: LaunchRequest) -> LaunchPlan:
        """Return the engine's command line; members that do not lead take connections of the leader."""
        plan, mine = self.launch(request), request.members[request.member]
        group = ",".join(f"{each.host}:{each.ports[0]}" for each in request.members)
        argv = (*plan.argv, "--group", group, "--member", str(request.member))
        if request.member == 0:
            return LaunchPlan(argv=argv)
        return LaunchPlan(argv=argv, ready=Probe(path="", address=(mine.host, mine.ports[0])))

    def artifact(self, version: str, platform: Platform) -> PipxPackage:
        """Return the engine as a package that calls itself ``version``."""
        if not _VERSION.fullmatch(version):
            raise Refused(f"{version!r} is no version of the fake engine; they look like {engine.VERSION}")
        if platform.system not in ("linux", "darwin", "windows"):
            raise Refused(f"the fake engine needs Python, which {platform.system or 'this system'} has not")
        name, wheel = engine_wheel(version)
        return PipxPackage(
            package=engine.PACKAGE, version=version, command=COMMAND, wheel=wheel, wheel_name=name
        )

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the engine's command line."""
        parameters = _Parameters.parse(request.parameters)
        return LaunchPlan(
            argv=(
                *(request.command, "--host", request.host, "--port", str(request.port)),
                *("--model", request.model_path, "--served-model-name", request.model_name),
                *parameters.engine,
            )
        )

    def metrics(self) -> dict[str, str]:
        """Map what the engine counts."""
        return {
            "fake:requests_running": "num_requests_running",
            "fake:prompt_tokens_total": "prompt_tokens",
            "fake:generation_tokens_total": "generation_tokens",
        }


@lru_cache(maxsize=8)
def engine_wheel(version: str) -> tuple[str, bytes]:
    """Return the file name and content of a wheel with the engine."""
    info = f"{_MODULE}-{version}.dist-info"
    files = {
        f"{_MODULE}.py": inspect.getsource(engine).encode(),
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {engine.PACKAGE}\nVersion: {version}\nSummary: An engine for tests\n"
        ).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: gpustack\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{COMMAND} = {_MODULE}:main\n".encode(),
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        for name, content in files.items()
    }
    record = "".join(f"{name},sha256={digests[name]},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            # A fixed time makes equal wheels of equal engines.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return f"{_MODULE}-{version}-py3-none-any.whl", buffer.getvalue()


@hookimpl
def register_inference_backends() -> Iterable[type[InferenceBackend[Any]]]:
    """Return the one backend there is here."""
    return [FakeBackend]
