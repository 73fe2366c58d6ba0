"""Acme for GPUStack: `gpustack deploy model.gguf --backend acme`."""

from collections.abc import Sequence

from gpustack.plugin import (
    Artifact,
    EstimateRequest,
    GpuDevice,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    ModelFacts,
    NoSettings,
    Platform,
    Refused,
    ResourceClaim,
    Verdict,
    hookimpl,
)
from gpustack_backends import LlamaCpp

#: The version of GPUStack's plugin API that this was written for.
plugin_api_version = "1.0"

MIB = 1 << 20
#: Tokens that a request may have when nobody says how many.
CONTEXT = 4096


class AcmeBackend(InferenceBackend[NoSettings]):
    """Serves GGUF chat models with llama.cpp, one request at a time, which gets all there is."""

    name = "acme"
    settings_type = NoSettings
    default_version = LlamaCpp.default_version

    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        if model.format != "gguf":
            return Verdict.no(f"acme reads GGUF files, and {model.path} is none")
        if model.categories[:1] != ("llm",):
            return Verdict.no(f"acme serves chat models, and {model.path} is none")
        return Verdict.yes()

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        model = request.model
        of_a_token = 2 * model.layers * model.kv_heads * (model.key_length + model.value_length)
        memory = model.weight_bytes + of_a_token * context(model, request.parameters) + 300 * MIB
        if not request.devices:
            return ResourceClaim(ram=memory)
        return ResourceClaim(ram=500 * MIB, vram=memory, gpus=len(request.devices))

    def artifact(self, version: str, platform: Platform) -> Artifact:
        # The engine that GPUStack itself packages. One that a package index has is a PipxPackage with its name,
        # this version, and the command that it brings.
        return LlamaCpp(NoSettings(), self.host).artifact(version, platform)

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        argv = [request.command, "--host", request.host, "--port", str(request.port)]
        argv += ["--model", request.model_path, "--alias", request.model_name, "--parallel", "1"]
        argv += ["--ctx-size", str(context(request.model, request.parameters))]
        argv += ["--gpu-layers", "all"] if request.devices else []
        return LaunchPlan(argv=(*argv, *request.parameters))


@hookimpl
def register_inference_backends() -> list[type[AcmeBackend]]:
    """Bring the backend."""
    return [AcmeBackend]


def context(model: ModelFacts, parameters: Sequence[str]) -> int:
    """Return the tokens that a request may have: what the user wants, else what the model can, within reason."""
    given = [each.removeprefix("--ctx-size=") for each in parameters if each.startswith("--ctx-size=")]
    if not given:
        return min(model.context_length or CONTEXT, CONTEXT)
    if not given[-1].isdecimal():
        raise Refused(f"--ctx-size takes a number of tokens, not {given[-1]!r}")
    return int(given[-1])
