"""The llama.cpp backend."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gpustack.plugin import (
    EstimateRequest,
    GpuDevice,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    ModelFacts,
    NoSettings,
    PipxPackage,
    Platform,
    Preference,
    Refused,
    ResourceClaim,
    Suggestion,
    Verdict,
)
from gpustack.plugin.llama_logs import failure_in
from gpustack.plugin.memory.llama import (
    Case,
    Parameters,
    Shape,
    claim,
    is_whole_input,
    suggestions,
    that_help,
    ways,
    with_companions,
)
from gpustack_backends.llama_cpp.launcher import COMMAND, PACKAGE, VERSION, launcher_wheel, lock_of
from gpustack_backends.llama_cpp.slots import slots_in_use

_CATEGORIES = ("llm", "embedding", "reranker")
#: A version as packaging tools write it; another spelling of the same one would be a second installation.
_VERSION = re.compile(
    r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*((a|b|rc)(0|[1-9]\d*))?(\.post(0|[1-9]\d*))?(\.dev(0|[1-9]\d*))?"
)
#: What the launcher says before it ends.
_REFUSED = re.compile(rf"^{COMMAND}: ([^\n]{{1,300}}) \(see {COMMAND} --help\)$", re.MULTILINE)
#: What xllamacpp is built for.
_PLATFORMS = {
    "linux": ("x86_64", "aarch64"),
    "darwin": ("x86_64", "arm64", "aarch64"),
    "windows": ("AMD64", "amd64", "x86_64"),
}
_METRICS = {
    "llamacpp:requests_processing": "num_requests_running",
    "llamacpp:requests_deferred": "num_requests_waiting",
    "llamacpp:kv_cache_usage_ratio": "kv_cache_usage_ratio",
    "llamacpp:prompt_tokens_total": "prompt_tokens",
    "llamacpp:prompt_tokens_cached_total": "prompt_tokens_cached",
    "llamacpp:tokens_predicted_total": "generation_tokens",
    "llamacpp:spec_decode_num_draft_tokens_total": "spec_decode_draft_tokens",
    "llamacpp:spec_decode_num_accepted_tokens_total": "spec_decode_accepted_tokens",
}


class LlamaCpp(InferenceBackend[NoSettings]):
    """Serves GGUF files: chat and completion, embeddings, reranking.

    Its versions are those of ``xllamacpp``, its parameters the flags of llama-server, with one difference:
    ``--ctx-size`` is the context that each request may have (see :class:`~gpustack.plugin.memory.llama.Shape`).
    """

    name = "llama-cpp"
    settings_type = NoSettings
    default_version = VERSION
    #: Its metrics do not tell.
    load_path = "/slots"

    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        """Agree to GGUF files of language, embedding and reranking models, with or without GPUs."""
        if model.format == "safetensors":
            return Verdict.no(
                f"llama.cpp reads GGUF files; {model.path} is a safetensors directory: "
                "convert it to GGUF with llama.cpp's convert_hf_to_gguf.py"
            )
        if model.format != "gguf":
            return Verdict.no(f"llama.cpp reads GGUF files; {model.path} is none")
        if not set(model.categories[:1]) & set(_CATEGORIES):
            what = model.categories[0] if model.categories else "unknown"
            return Verdict.no(
                f"llama.cpp serves {', '.join(_CATEGORIES)} models; {model.path} is of kind {what}"
            )
        return Verdict.yes()

    def preference(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Preference:
        """Be the first: GGUF is its own format."""
        return Preference(rank=20, reason="it serves GGUF files, with and without GPUs")

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        """Return weights, KV cache, compute buffers and the process; on GPUs what is offloaded there."""
        return claim(_case(request), len(request.devices))

    def ways(self, request: EstimateRequest) -> Sequence[ResourceClaim]:
        """Return the fewest GPUs first, then several with shares as they have room, then with a part in RAM."""
        gpus = len(request.devices)
        return ways(_case(request), gpus) if gpus else (self.estimate(request),)

    def suggestions(self, request: EstimateRequest) -> Sequence[Sequence[Suggestion]]:
        """Return shorter contexts, a smaller cache, fewer requests at a time."""
        kinds = suggestions(Case(request.model, Parameters.parse(request.parameters)))
        return that_help(kinds, request, self.estimate)

    def artifact(self, version: str, platform: Platform) -> PipxPackage:
        """Return our launcher, made for this version of xllamacpp."""
        if not _VERSION.fullmatch(version):
            raise Refused(f"{version!r} is no version of xllamacpp; they look like {VERSION}")
        if platform.machine not in _PLATFORMS.get(platform.system, ()):
            raise Refused(
                f"llama.cpp comes for Linux, macOS and Windows, not for {platform.system} on {platform.machine}"
            )
        name, wheel = launcher_wheel(version)
        return PipxPackage(
            package=PACKAGE,
            version=version,
            command=COMMAND,
            wheel=wheel,
            wheel_name=name,
            constraints=lock_of(version),
            imports=("xllamacpp",),
        )

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the launcher's command line."""
        given = Parameters.parse(request.parameters)
        parameters = with_companions(request.model, given, request.model_path)
        shape = Shape.of(request.model, parameters)
        argv = [
            *(request.command, "--host", request.host, "--port", str(request.port)),
            *("--model", request.model_path, "--alias", request.model_name, "--metrics"),
            *("--parallel", str(shape.parallel), "--ctx-size", str(shape.total)),
            *_purpose(request.model, shape),
            *_gpus(request.devices, request.pieces),
            *parameters.without("--ctx-size"),
        ]
        # When it aborts, llama.cpp would start a debugger to show where, which takes seconds.
        return LaunchPlan(argv=tuple(argv), env={"GGML_NO_BACKTRACE": "1"})

    def failure(self, log: str) -> str:
        """Read out of the log what llama.cpp says of the model and its files, or its launcher of the parameters."""
        found = _REFUSED.search(log)
        return failure_in(log) or (f"its parameters are refused: {found[1]}" if found else "")

    def metrics(self) -> Mapping[str, str]:
        """Map what llama.cpp counts."""
        return _METRICS

    def kv_cache_use(self, answer: str) -> float | None:
        """Add up what the slots at work hold; what is left from requests that ended, a new one may overwrite."""
        return slots_in_use(answer)


def _case(request: EstimateRequest) -> Case:
    given = Parameters.parse(request.parameters)
    return Case(request.model, with_companions(request.model, given, request.model.path), request.version)


def _purpose(model: ModelFacts, shape: Shape) -> tuple[str, ...]:
    """How vectors are pooled is left to the file, which says it."""
    if not is_whole_input(model):
        return ()
    flag = "--reranking" if model.categories[0] == "reranker" else "--embeddings"
    return (flag, "--batch-size", str(shape.batch), "--ubatch-size", str(shape.ubatch))


def _gpus(devices: Sequence[GpuDevice], pieces: Sequence[int]) -> tuple[str, ...]:
    if not devices:
        return ()
    if pieces:
        split = ("--tensor-split", ",".join(map(str, pieces))) if len(devices) > 1 else ()
        return ("--gpu-layers", str(sum(pieces)), *split)
    # The claim spreads the memory evenly.
    split = ("--tensor-split", ",".join("1" for _ in devices)) if len(devices) > 1 else ()
    return ("--gpu-layers", "all", *split)
