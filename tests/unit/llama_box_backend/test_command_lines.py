"""What llama-box is told, word for word."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from gpustack.plugin import (
    Arrangement,
    EstimateRequest,
    GpuDevice,
    Host,
    LaunchRequest,
    Member,
    ModelFacts,
    Probe,
    Refused,
)
from gpustack_backends import LlamaBox, LlamaCpp
from gpustack_backends.llama_box.settings import LlamaBoxSettings
from gpustack_backends.llama_box.several import shares_of
from support.model_facts import GIB, LLAMA_8B

START = "/opt/llama-box --host 127.0.0.1 --port 40000 --model {} --alias chat --metrics"
END = "--no-mmap --no-warmup"


def gpu(index: int, gib: int = 24) -> GpuDevice:
    return GpuDevice(
        uuid=f"GPU-{index}", index=index, vendor="nvidia", name="G", memory_total=gib * GIB, type="cuda"
    )


@pytest.fixture
def backend() -> LlamaBox:
    host = Host(log=logging.getLogger("test"), data_dir=Path("/data"), bin_dir=Path("/bin"))
    return LlamaBox(LlamaBoxSettings(), host)


def request(model: ModelFacts, *parameters: str, gpus: int = 0, **more) -> LaunchRequest:
    return LaunchRequest(
        instance_name="chat-1",
        model_name="chat",
        model=model,
        command="/opt/llama-box",
        version="v0.0.171",
        host="127.0.0.1",
        port=40000,
        model_path=model.path,
        parameters=parameters,
        devices=tuple(gpu(index) for index in range(gpus)),
        **more,
    )


def line(backend: LlamaBox, model: ModelFacts, *parameters: str, gpus: int = 0, **more) -> str:
    return " ".join(backend.launch(request(model, *parameters, gpus=gpus, **more)).argv)


def test_a_language_model_on_the_cpu(backend) -> None:
    start = START.format(LLAMA_8B.path)
    assert line(backend, LLAMA_8B) == (
        f"{start} --embeddings --parallel 4 --ctx-size 8192 --gpu-layers 0 {END}"
    )


def test_on_gpus_all_layers_go_there(backend) -> None:
    middle = "--embeddings --parallel 4 --ctx-size 8192 --gpu-layers 33"
    start = START.format(LLAMA_8B.path)

    assert line(backend, LLAMA_8B, gpus=1) == f"{start} {middle} {END}"
    assert line(backend, LLAMA_8B, gpus=2) == f"{start} {middle} --tensor-split 1,1 {END}"


def test_as_many_layers_as_there_is_room_for(backend) -> None:
    assert "--gpu-layers 20 --tensor-split 12,8" in line(backend, LLAMA_8B, gpus=2, pieces=(12, 8))


def test_layers_that_nobody_counted_all_go_there(backend) -> None:
    assert "--gpu-layers 999 " in line(backend, replace(LLAMA_8B, layers=0), gpus=1)


@pytest.mark.parametrize(
    ("category", "middle"),
    [
        (
            "embedding",
            "--embeddings --parallel 1 --ctx-size 2048 --batch-size 2048 --ubatch-size 2048 --gpu-layers 33",
        ),
        (
            "reranker",
            "--embeddings --rerank --parallel 1 --ctx-size 2048 --batch-size 2048 --ubatch-size 2048 --gpu-layers 33",
        ),
        ("image", "--images --image-vae-tiling --parallel 1 --tensor-split 1"),
    ],
)
def test_each_kind_of_model_has_its_flags(backend, category, middle) -> None:
    model = replace(LLAMA_8B, categories=(category,))

    assert line(backend, model, gpus=1) == f"{START.format(model.path)} {middle} {END}"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (("--ctx-size=4096", "--temp=0.5"), "--temp 0.5"),
        (("--ctx-size 4096 -tb 8",), "-tb 8"),
        (("-c", "4096", "--lora-scaled", "a.gguf", "0.5"), "--lora-scaled /models/a.gguf 0.5"),
        (("-c 4096", "--lora-scaled=/x/a.gguf 0.5"), "--lora-scaled /x/a.gguf 0.5"),
        (("-c 4096", "--seed", "-1"), "--seed -1"),
    ],
)
def test_values_are_words_of_their_own_since_it_knows_no_equals_sign(backend, given, written) -> None:
    """What it does not know it passes over with a word in its log, and goes on with its default."""
    got = line(backend, LLAMA_8B, *given)

    assert " --ctx-size 4096 " in got
    assert got.endswith(f"{END} {written}")


@pytest.mark.parametrize(
    ("companions", "mmproj"),
    [
        ((), ""),
        (("mmproj-F16.gguf",), "/models/mmproj-F16.gguf"),
        (("mmproj-F16.gguf", "llama-8b-Q8_0.gguf"), "/models/mmproj-F16.gguf"),
        (("mmproj-llama-8b-f16.gguf", "qwen-7b.gguf"), "/models/mmproj-llama-8b-f16.gguf"),
        (("llama-8b-mmproj-BF16.gguf", "llama-8b-mmproj-F32.gguf"), "/models/llama-8b-mmproj-BF16.gguf"),
        # Nobody knows whose it is, or it is another's.
        (("mmproj-F16.gguf", "qwen-7b.gguf"), ""),
        (("mmproj-qwen-7b-f16.gguf",), ""),
    ],
)
def test_the_projector_beside_a_model_is_used_when_it_is_its_own(backend, companions, mmproj) -> None:
    model = replace(LLAMA_8B, companions=tuple((name, GIB) for name in companions))

    got = line(backend, model)

    assert (f"--max-projected-cache 10 --gpu-layers 0 {END} --mmproj {mmproj}" in got) == bool(mmproj)
    assert ("mmproj" in got) == bool(mmproj)
    assert "mmproj" not in line(backend, model, "--no-mmproj")


def test_a_projector_that_is_named_is_looked_for_beside_the_model(backend) -> None:
    assert line(backend, LLAMA_8B, "--mmproj", "p.gguf").endswith("--mmproj /models/p.gguf")
    assert line(backend, LLAMA_8B, "--mmproj=/else/p.gguf").endswith("--mmproj /else/p.gguf")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--host=0.0.0.0", "--host cannot be set: GPUStack sets the address itself"),
        ("-m x.gguf", "--model cannot be set: GPUStack sets the model's file itself"),
        ("--alias=x", "--alias cannot be set"),
        ("--rpc=10.0.0.1:50052", "--rpc cannot be set: GPUStack sets the GPUs of other workers itself"),
        ("--rpc-server-port=50052", "--rpc-server-port cannot be set"),
        ("--images", "--images cannot be set: GPUStack sets what the model is for itself"),
        ("--list-devices", "--list-devices would end the engine at once"),
    ],
)
def test_what_gpustack_must_own_is_refused_with_the_reason(backend, given, said) -> None:
    with pytest.raises(Refused) as caught:
        backend.launch(request(LLAMA_8B, given))

    assert said in str(caught.value)


def test_its_own_libraries_are_found(backend) -> None:
    assert backend.launch(request(LLAMA_8B)).env == {"LD_LIBRARY_PATH": "/opt"}


def test_an_image_knows_where_its_libraries_are(backend) -> None:
    inside = replace(request(LLAMA_8B), command="llama-box")

    assert backend.launch(inside).env == {}


# Memory ------------------------------------------------------------------------------------------------------


def estimate(backend, model: ModelFacts, *parameters: str, gpus: int = 0):
    devices = tuple(gpu(index) for index in range(gpus))
    return backend.estimate(
        EstimateRequest(model=model, version="v0.0.171", parameters=parameters, devices=devices)
    )


def test_the_context_is_shared_so_it_takes_a_quarter_of_llama_cpps_cache(backend) -> None:
    llama_cpp = LlamaCpp(backend.settings, backend.host)

    ours = estimate(backend, LLAMA_8B, gpus=1)
    theirs = llama_cpp.estimate(
        EstimateRequest(model=LLAMA_8B, version="1", devices=(gpu(0),), parameters=())
    )

    # 8192 tokens of 32 layers with 8 heads of 128, keys and values, two bytes each; llama.cpp keeps that for four.
    assert theirs.vram - ours.vram == pytest.approx(3 * 8192 * 32 * 8 * 128 * 2 * 2, rel=0.05)
    assert ours.ram < theirs.ram, "it keeps no prompts in RAM"


def test_what_would_take_less_is_suggested(backend) -> None:
    kinds = backend.suggestions(
        EstimateRequest(model=LLAMA_8B, version="v0.0.171", devices=(gpu(0),), parameters=("--temp 0",))
    )

    assert [kind[0].what for kind in kinds] == [
        "a context of 4096 tokens",
        "an 8-bit KV cache",
        "2 requests at a time",
    ]
    assert kinds[0][0].parameters == ("--temp", "0", "--ctx-size=4096")


def test_nothing_is_mapped(backend) -> None:
    assert estimate(backend, replace(LLAMA_8B, bytes_by_type=(("F16", 4 * GIB),))).mapped == 0


def test_pictures_take_weights_and_room_to_paint(backend) -> None:
    model = replace(LLAMA_8B, categories=("image",), layers=0)

    assert estimate(backend, model, gpus=2).gpus == 1
    assert estimate(backend, model, gpus=2).vram == model.weight_bytes + 2 * GIB
    assert estimate(backend, model).vram == 0


# Several workers -----------------------------------------------------------------------------------------------


def members(*sizes: tuple[int, ...]) -> tuple[Member, ...]:
    return tuple(
        Member(
            number=number,
            host=f"192.0.2.{number + 1}",
            ports=(41000 + number,),
            devices=tuple(gpu(index, gib) for index, gib in enumerate(each)),
        )
        for number, each in enumerate(sizes)
    )


def test_the_leader_divides_the_model_over_its_own_gpus_and_those_that_others_lend(backend) -> None:
    group = members((24, 24), (24,), (8,))

    leader, second, third = (
        backend.launch_member(
            replace(request(LLAMA_8B), members=group, member=each.number, devices=each.devices)
        )
        for each in group
    )

    assert " ".join(leader.argv) == (
        f"{START.format(LLAMA_8B.path)} --embeddings --parallel 4 --ctx-size 8192 --gpu-layers 33"
        f" --rpc 192.0.2.2:41001,192.0.2.3:41002 --tensor-split 10,3,10,10 {END}"
    )
    for number, each in ((1, second), (2, third)):
        assert " ".join(each.argv) == (
            f"/opt/llama-box --rpc-server-host 192.0.2.{number + 1} --rpc-server-port {41000 + number}"
            " --rpc-server-main-gpu 0"
        )
        assert each.ready == Probe(path="", address=(f"192.0.2.{number + 1}", 41000 + number))
    assert backend.arrangement(request(LLAMA_8B)) == Arrangement(ports=1, first="followers")


def test_each_member_claims_what_its_part_takes(backend) -> None:
    question = EstimateRequest(model=LLAMA_8B, version="v0.0.171", devices=(gpu(0),))
    whole = estimate(backend, LLAMA_8B, gpus=1)

    leader, lent = backend.members(question, [(gpu(0), gpu(1)), (gpu(0), gpu(1))])

    assert (leader.gpus, lent.gpus) == (2, 1)
    assert whole.vram / 3 < lent.vram < whole.vram / 2
    assert leader.vram == pytest.approx(2 * lent.vram, rel=0.05)
    assert lent.ram < leader.ram


@pytest.mark.parametrize(
    ("workers", "parameters", "said"),
    [
        ([(gpu(0),), ()], (), "worker 2 of them has none"),
        ([(gpu(0),), (gpu(0),)], ("--gpu-layers=10",), "leaves a part in RAM"),
        ([(gpu(0),), (gpu(0),)], ("--gpu-layers=0",), "leaves a part in RAM"),
    ],
)
def test_a_division_that_it_cannot_make_is_refused(backend, workers, parameters, said) -> None:
    question = EstimateRequest(model=LLAMA_8B, version="v0.0.171", parameters=parameters, devices=(gpu(0),))

    with pytest.raises(Refused) as caught:
        backend.members(question, workers)

    assert said in str(caught.value)


@pytest.mark.parametrize("sizes", [(24,), (24, 24, 24), (80, 8, 8), (1, 1, 1, 1, 1), (24, 12, 11)])
@pytest.mark.parametrize("layers", [1, 3, 33, 81])
def test_every_layer_has_a_place_and_every_gpu_a_layer(sizes, layers) -> None:
    shares = shares_of([gpu(0, each) for each in sizes], layers)

    assert len(shares) == len(sizes)
    assert min(shares) >= 1
    if layers >= len(sizes):
        assert sum(shares) == layers
