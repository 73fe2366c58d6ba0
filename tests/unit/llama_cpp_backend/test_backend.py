"""What the llama.cpp backend agrees to, and the command lines it gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpustack.plugin import (
    EstimateRequest,
    GpuDevice,
    LaunchRequest,
    ModelFacts,
    Platform,
    Refused,
    ResourceClaim,
)
from support.engine import LINUX, llama_cpp_backend
from support.model_facts import BERT, LLAMA_8B

MIB, GIB = 1 << 20, 1 << 30


def gpu(index: int) -> GpuDevice:
    return GpuDevice(
        uuid=f"GPU-{index}", index=index, vendor="nvidia", name="H", memory_total=80 * GIB, type="cuda"
    )


@pytest.fixture
def backend(tmp_path: Path):
    return llama_cpp_backend(tmp_path)


def estimate(backend, model: ModelFacts, *parameters: str, gpus: int = 0) -> ResourceClaim:
    devices = tuple(gpu(index) for index in range(gpus))
    return backend.estimate(EstimateRequest(model=model, version="1", parameters=parameters, devices=devices))


def argv(backend, model: ModelFacts, *parameters: str, gpus: int = 0) -> str:
    request = LaunchRequest(
        instance_name="chat-1",
        model_name="chat",
        model=model,
        command="/bin/engine",
        version="1",
        host="127.0.0.1",
        port=40000,
        model_path=model.path,
        parameters=parameters,
        devices=tuple(gpu(index) for index in range(gpus)),
    )
    return " ".join(backend.launch(request).argv)


# --- accepts ---


@pytest.mark.parametrize("category", ["llm", "embedding", "reranker"])
@pytest.mark.parametrize("devices", [(), (gpu(0),)])
def test_it_takes_gguf_files_of_its_kinds(backend, category, devices) -> None:
    assert backend.accepts(replace(LLAMA_8B, categories=(category,)), devices).ok


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"format": "safetensors", "path": "/models/hf"},
            "/models/hf is a safetensors directory: convert it to GGUF",
        ),
        ({"format": "unknown", "path": "/models/x"}, "llama.cpp reads GGUF files; /models/x is none"),
        ({"categories": ("image",)}, "is of kind image"),
        ({"categories": ("unknown",)}, "is of kind unknown"),
        ({"categories": ()}, "is of kind unknown"),
    ],
)
def test_it_says_why_not(backend, change, reason) -> None:
    verdict = backend.accepts(replace(LLAMA_8B, **change), ())

    assert not verdict.ok
    assert reason in verdict.reason
    assert "\n" not in verdict.reason


# --- launch ---

START = "/bin/engine --host 127.0.0.1 --port 40000 --model /models/llama-8b.gguf --alias chat --metrics"


def test_each_of_the_slots_gets_the_default_context(backend) -> None:
    assert argv(backend, LLAMA_8B) == f"{START} --parallel 4 --ctx-size 32768"


def test_a_short_context_stays_short(backend) -> None:
    assert argv(backend, replace(LLAMA_8B, context_length=2048)) == f"{START} --parallel 4 --ctx-size 8192"


@pytest.mark.parametrize(
    "given", [("--ctx-size", "4096"), ("--ctx-size=4096",), ("-c 4096",), ("--ctx_size=4096",)]
)
def test_the_users_context_is_that_of_one_request(backend, given) -> None:
    assert argv(backend, LLAMA_8B, *given) == f"{START} --parallel 4 --ctx-size 16384"


def test_a_context_of_0_is_the_models_own(backend) -> None:
    assert argv(backend, LLAMA_8B, "--ctx-size=0") == f"{START} --parallel 4 --ctx-size {131072 * 4}"


def test_slots_that_share_the_context_get_it_once(backend) -> None:
    line = argv(backend, LLAMA_8B, "--ctx-size 4096 --kv-unified -np 8")

    assert line == f"{START} --parallel 8 --ctx-size 4096 --kv-unified -np 8"


def test_the_users_parameters_come_last_as_they_are(backend) -> None:
    template = '--chat-template-kwargs={"a b": "--x", "c": -1}'

    line = argv(backend, LLAMA_8B, "--threads 2", "--temp", "-1", template, "--jinja", gpus=1)

    assert (
        line
        == f"{START} --parallel 4 --ctx-size 32768 --gpu-layers all --threads 2 --temp -1 {template} --jinja"
    )


def test_several_gpus_share_evenly(backend) -> None:
    assert argv(backend, LLAMA_8B, gpus=3).endswith("--gpu-layers all --tensor-split 1,1,1")


def test_an_embedding_input_fits_into_one_batch(backend) -> None:
    line = argv(backend, replace(BERT, context_length=8192), "--ctx-size=4096")

    assert line.endswith("--parallel 4 --ctx-size 16384 --embeddings --batch-size 4096 --ubatch-size 4096")


def test_a_reranker_reranks(backend) -> None:
    line = argv(backend, replace(BERT, categories=("reranker", "embedding")))

    assert line.endswith("--parallel 4 --ctx-size 2048 --reranking --batch-size 2048 --ubatch-size 512")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--port", "1"), "--port cannot be set: GPUStack sets the port itself"),
        (("--host=0.0.0.0",), "--host cannot be set"),
        (("-m /etc/passwd",), "--model cannot be set"),
        (("-a", "other"), "--alias cannot be set"),
        (("--threads", "2", "--api_key=x"), "--api-key cannot be set"),
        (("--version",), "would end the engine at once"),
        (("ctx-size=4",), "is no flag: flags begin with --"),
        (("--threads 2 3",), "'3' is no flag"),
        (("--ctx-size=big",), "--ctx-size needs a whole number, not 'big'"),
        (("--ctx-size",), "--ctx-size needs a whole number"),
        (("--ctx-size=-1",), "--ctx-size must be 0 or more, not -1"),
        (("--ctx-size=10000000000000",), "--ctx-size must be 2147483647 or less, not 10000000000000"),
        ((f"--parallel={10**20}",), f"--parallel must be 2147483647 or less, not {10**20}"),
        (("--parallel=0",), "--parallel must be 1 or more"),
        (("--chat-template 'a",), "cannot be taken apart"),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_line(backend, given, said) -> None:
    with pytest.raises(Refused) as caught:
        argv(backend, LLAMA_8B, *given)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- estimate ---


def test_an_8b_model_on_the_cpu(backend) -> None:
    claim = estimate(backend, LLAMA_8B)

    # 4 x 8192 tokens of 128 KiB are 4 GiB; compute buffers and the process come on top.
    assert LLAMA_8B.weight_bytes + 4 * GIB < claim.ram < LLAMA_8B.weight_bytes + 4 * GIB + 800 * MIB
    assert (claim.vram, claim.gpus) == (0, 0)


def test_quantised_keys_and_values_take_less(backend) -> None:
    def kv(*parameters: str) -> int:
        return estimate(backend, LLAMA_8B, "--ctx-size=32768", "--parallel=1", *parameters).ram

    none = estimate(backend, LLAMA_8B, "--ctx-size=1", "--parallel=1").ram

    saved = (kv() - kv("-ctk=q8_0", "--cache-type-v", "q8_0")) / (kv() - none)
    assert saved == pytest.approx(1 - 34 / 64, rel=0.02)


def test_on_gpus_the_model_is_in_their_memory(backend) -> None:
    one, two = estimate(backend, LLAMA_8B, gpus=1), estimate(backend, LLAMA_8B, gpus=2)

    assert one.vram > LLAMA_8B.weight_bytes + 4 * GIB
    assert one.ram < 1 * GIB
    assert (one.gpus, two.gpus) == (1, 2)
    assert two.vram > one.vram, "each GPU has buffers of its own"


def test_layers_that_stay_are_in_ram(backend) -> None:
    whole, half = estimate(backend, LLAMA_8B, gpus=1), estimate(backend, LLAMA_8B, "-ngl 16", gpus=1)
    none = estimate(backend, LLAMA_8B, "-ngl", "0", gpus=1)

    assert half.vram < 0.6 * whole.vram
    assert half.ram > 0.5 * LLAMA_8B.weight_bytes
    assert none == estimate(backend, LLAMA_8B)


def test_an_encoder_has_no_cache(backend) -> None:
    small, large = estimate(backend, BERT, "--parallel=1"), estimate(backend, BERT, "--parallel=64")

    # One vector each comes out, of 768 elements.
    assert large.ram - small.ram == 63 * 768 * 4
    assert BERT.weight_bytes < small.ram < BERT.weight_bytes + 200 * MIB


def test_a_header_that_says_little_still_gives_a_claim(backend) -> None:
    bare = ModelFacts(format="gguf", path="/x", weight_bytes=8 * GIB, categories=("llm",))

    assert 9 * GIB < estimate(backend, bare).ram < 14 * GIB


def test_kept_prompts_count(backend) -> None:
    assert estimate(backend, LLAMA_8B, "--cache-ram 1256").ram - estimate(backend, LLAMA_8B).ram == 1000 * MIB


def test_a_cache_type_that_does_not_exist_is_refused(backend) -> None:
    with pytest.raises(Refused, match="--cache-type-k must be one of f32, f16"):
        estimate(backend, LLAMA_8B, "--cache-type-k=q3")


# --- artifact ---


@pytest.mark.parametrize(
    "version", ["", "latest", "1..2", "1.0/../x", "2026.10.011549", "1.0 ", "v1.0", "1.0-1"]
)
def test_what_is_no_version_is_refused(backend, version) -> None:
    with pytest.raises(Refused, match="is no version of xllamacpp"):
        backend.artifact(version, LINUX)


@pytest.mark.parametrize(("system", "machine"), [("linux", "riscv64"), ("freebsd", "x86_64")])
def test_other_machines_are_refused(backend, system, machine) -> None:
    with pytest.raises(Refused, match=f"not for {system} on {machine}"):
        backend.artifact("1.0", Platform(system=system, machine=machine))


def test_metrics_have_the_common_names(backend) -> None:
    assert backend.metrics()["llamacpp:requests_processing"] == "num_requests_running"


def test_the_plugin_brings_it() -> None:
    import gpustack_backends

    assert "llama-cpp" in [each.name for each in gpustack_backends.register_inference_backends()]


def test_the_default_version_has_a_lock_with_hashes_and_others_have_none(backend) -> None:
    from gpustack.worker.artifacts.pins import hashes_of

    locked = backend.artifact(backend.default_version, LINUX)
    assert f"xllamacpp=={backend.default_version} " in locked.constraints, "run `make lock`"
    assert len(hashes_of(locked.constraints)["xllamacpp"]) > 5
    assert "http" not in locked.constraints
    assert backend.artifact("2026.8.10566", LINUX).constraints == ""


@pytest.mark.parametrize(
    "said", ["unrecognized arguments: --nosuchflag", "--lora: /no.gguf is not a readable file"]
)
def test_what_its_launcher_refuses_is_the_reason(backend, said: str) -> None:
    log = f"begin\ngpustack-llama-server: {said} (see gpustack-llama-server --help)\n"
    assert backend.failure(log) == f"its parameters are refused: {said}"
    assert backend.failure("") == ""
