"""What vLLM is asked for, what it takes, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import (
    Adapter,
    EstimateRequest,
    GpuDevice,
    LaunchRequest,
    Platform,
    Refused,
    ResourceClaim,
)
from support.engine_lines import CASES, EIGHT, SEVENTY, VECTORS, VLLM_CASES, backend, cards

VLLM = backend("vllm")
GIB = 1 << 30
LINUX = Platform(system="linux", machine="x86_64", accelerators=("cuda",))


def question(
    model: Any, devices: tuple[GpuDevice, ...], *parameters: str, version: str = "0.32.0"
) -> EstimateRequest:
    return EstimateRequest(model=model, version=version, parameters=parameters, devices=devices)


def launch(case: str, *parameters: str, version: str = "0.32.0", **more: Any) -> list[str]:
    request: LaunchRequest = replace(VLLM_CASES[case], version=version, **more)
    return [*VLLM.launch(replace(request, parameters=(*request.parameters, *parameters))).argv]


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_a_model_takes_as_many_gpus_as_it_needs() -> None:
    ways = VLLM.ways(question(SEVENTY, cards(8)))
    assert [each.gpus for each in ways][:2] == [4, 8]
    assert all(each.vram // each.gpus < 80 * GIB for each in ways[:2])
    assert VLLM.ways(question(EIGHT, cards(8)))[0].gpus == 1


def test_the_context_is_the_longest_that_fits() -> None:
    contexts = {
        gib: int(value(launch("one GPU", devices=cards(1, gib)), "--max-model-len"))
        for gib in (18, 20, 21, 24, 80)
    }
    assert [*contexts.values()] == sorted(contexts.values())
    assert contexts[80] == 32768
    assert contexts[18] == 2048
    assert contexts[20] < 32768


@given(st.integers(16, 200), st.integers(1, 8), st.sampled_from([EIGHT, SEVENTY, VECTORS]))
def test_what_is_launched_is_what_was_claimed(gib: int, gpus: int, model: Any) -> None:
    """On the GPUs that were claimed, the engine's fixed sizes add up to the claim, whatever the card."""
    for way in VLLM.ways(question(model, cards(gpus, gib))):
        if way.vram // way.gpus > gib * GIB:
            continue
        devices = cards(way.gpus, gib)
        request = replace(VLLM_CASES["one GPU"], model=model, version="0.32.0", devices=devices, claim=way)
        argv = [*VLLM.launch(request).argv]
        share = float(value(argv, "--gpu-memory-utilization")) * gib * GIB
        assert way.vram / way.gpus == pytest.approx(share, rel=1e-4, abs=2 << 20)
        assert int(value(argv, "--kv-cache-memory-bytes")) < way.vram / way.gpus


def test_a_claim_that_was_measured_larger_does_not_make_the_cache_grow() -> None:
    """Else each start would measure more than the one before."""
    claim = VLLM.estimate(question(EIGHT, cards(1)))
    raised = ResourceClaim(ram=claim.ram, vram=claim.vram * 3 // 2, gpus=1)
    one, other = launch("one GPU", claim=claim), launch("one GPU", claim=raised)
    assert value(one, "--kv-cache-memory-bytes") == value(other, "--kv-cache-memory-bytes")
    assert float(value(one, "--gpu-memory-utilization")) < float(value(other, "--gpu-memory-utilization"))


def test_the_whole_context_of_a_model_is_left_to_vllm() -> None:
    """Files beside config.json may name less than that, and vLLM refuses more."""
    assert "--max-model-len" not in launch("an embedding model")
    assert "--max-model-len" not in launch("one GPU", model=replace(EIGHT, context_length=8192))


def test_what_the_user_takes_of_a_card_is_claimed() -> None:
    claim = VLLM.estimate(question(EIGHT, cards(1), "--gpu-memory-utilization=0.9"))
    assert claim.vram == pytest.approx(0.9 * 80 * GIB, rel=0.01)


def test_caches_and_weights_in_ram_are_claimed_there() -> None:
    plain = VLLM.estimate(question(EIGHT, cards(1)))
    cached = VLLM.estimate(question(EIGHT, cards(1), "--kv-offloading-size=32"))
    moved = VLLM.estimate(question(EIGHT, cards(1), "--cpu-offload-gb=4"))
    assert cached.ram - plain.ram == 32 * GIB
    assert (moved.ram - plain.ram, plain.vram - moved.vram) == (4 * GIB, 4 * GIB)


def test_what_is_loaded_besides_is_claimed() -> None:
    plain = VLLM.estimate(question(EIGHT, cards(1))).vram
    draft = '--speculative-config={"method": "eagle3", "model": "/m/draft", "num_speculative_tokens": 3}'
    assert VLLM.estimate(question(EIGHT, cards(1), draft)).vram > plain + GIB
    assert VLLM.estimate(question(EIGHT, cards(1), "--lora-modules", "a=/m/a", "b=/m/b")).vram > plain


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (("-tp=3",), "32 attention heads cannot be dealt out evenly to 3 GPUs"),
        (("-tp=4", "-pp=4"), "take 16 GPUs, and there are 8"),
        (("--kv-cache-dtype=q1",), "no type for keys and values"),
        (("--speculative-config={}", '--speculative-config={"num_speculative_tokens": 3}'), "neither"),
        (("--gpu-memory-utilization=1.5",), "must be between 0.01 and 1"),
        (("--served-model-name=x",), "routes give it others"),
        (("--nnodes=2",), "how its processes find each other"),
        (("--config=/etc/x.yaml",), "one by one"),
    ],
)
def test_what_can_never_work_is_refused_before_anything_starts(
    parameters: tuple[str, ...], says: str
) -> None:
    with pytest.raises(Refused, match=says):
        VLLM.estimate(question(EIGHT, cards(8), *parameters))


def test_flags_of_other_versions_are_refused_with_the_version() -> None:
    with pytest.raises(
        Refused, match=r"--kv-offloading-size needs vLLM 0\.11\.1 or newer, and this is 0\.10\.2"
    ):
        VLLM.estimate(question(EIGHT, cards(1), "--kv-offloading-size=8", version="0.10.2"))
    with pytest.raises(
        Refused, match=r"--task is not in vLLM 0\.13 and newer, and this is 0\.32\.0; use --runner"
    ):
        VLLM.estimate(question(VECTORS, cards(1), "--task=embed"))


def test_a_model_that_needs_a_newer_version_says_which() -> None:
    new = replace(EIGHT, architecture="qwen3_next")
    with pytest.raises(
        Refused, match=r"architecture qwen3_next need vLLM 0\.10\.2 or newer, and this is 0\.9\.2"
    ):
        VLLM.estimate(question(new, cards(1), version="0.9.2"))
    assert VLLM.estimate(question(new, cards(1)))


def test_adapters_tell_the_highest_rank() -> None:
    assert VLLM.adapters(("--lora-modules", "a=/x/a", "b=org/hub", '{"name": "c", "path": "/x/c"}')) == [
        "/x/a",
        "/x/c",
    ]  # type: ignore[attr-defined]
    argv = launch("adapters", adapters=(Adapter(path="/a", rank=8), Adapter(path="/b", rank=65)))
    assert value(argv, "--max-lora-rank") == "128"
    assert "--max-lora-rank=64" in launch("adapters", "--max-lora-rank=64")
    with pytest.raises(Refused, match="takes 512 at most"):
        launch("adapters", adapters=(Adapter(path="/a", rank=1024),))
    with pytest.raises(Refused, match="name=path"):
        VLLM.adapters(("--lora-modules", "/x/a"))  # type: ignore[attr-defined]


def test_a_processor_beside_gpus_is_refused_since_the_build_is_for_those() -> None:
    on_cpu = replace(question(EIGHT, ()), platform=LINUX)
    with pytest.raises(Refused, match="only on machines without GPUs"):
        VLLM.estimate(on_cpu)
    alone = replace(on_cpu, platform=Platform(system="linux", machine="x86_64"))
    assert VLLM.estimate(alone).vram == 0


def test_the_cache_on_the_processor_is_in_the_claim() -> None:
    plain = VLLM.estimate(question(EIGHT, ()))
    long = VLLM.estimate(question(EIGHT, (), "--max-model-len=32768"))
    assert long.ram - plain.ram == 3 * GIB
    assert VLLM.estimate(question(EIGHT, (), "--dtype=float32")).ram - plain.ram > 15 * GIB


@pytest.mark.parametrize(
    "version", ["", "latest", "v0.32.0", "0.32", "0.8.4", "1.0/../x", "0.32.0 ", "0.032.0"]
)
def test_versions_are_versions(version: str) -> None:
    if version == "0.32":
        assert VLLM.artifact(version, LINUX).version == "0.32"
        return
    with pytest.raises(Refused):
        VLLM.artifact(version, LINUX)


def test_old_versions_bring_what_their_own_requirements_miss() -> None:
    assert VLLM.artifact("0.9.2", LINUX).requirements == ("transformers==4.53.3",)  # type: ignore[union-attr]
    assert VLLM.artifact("0.32.0", LINUX).requirements == ()  # type: ignore[union-attr]


def test_members_take_the_same_and_together_what_one_takes() -> None:
    claims = VLLM.members(question(SEVENTY, ()), [cards(8), cards(8)])  # type: ignore[attr-defined]
    assert claims[0] == claims[1]
    assert claims[0].gpus == 8
    whole = VLLM.estimate(question(SEVENTY, cards(16), "-tp=8", "-pp=2"))
    assert sum(each.vram for each in claims) == whole.vram


def test_a_worker_with_more_gpus_gives_only_as_many_as_the_others() -> None:
    claims = VLLM.members(question(SEVENTY, ()), [cards(8), cards(2), cards(3)])  # type: ignore[attr-defined]
    assert [each.gpus for each in claims] == [2, 2, 2]


@pytest.mark.parametrize(
    ("parameters", "version", "says"),
    [
        (("-tp=3",), "0.32.0", "cannot be dealt out evenly"),
        (("-tp=32",), "0.32.0", "cannot be taken evenly of 2 workers"),
        (("-dp=2",), "0.32.0", "is for one worker here"),
        (("--distributed-executor-backend=mp",), "0.10.2", r"from vLLM 0\.11\.1 on"),
        (("--distributed-executor-backend=uni",), "0.32.0", "does not span workers"),
    ],
)
def test_divisions_that_cannot_be_are_refused(parameters: tuple[str, ...], version: str, says: str) -> None:
    asked = question(SEVENTY, (), *parameters, version=version)
    with pytest.raises(Refused, match=says):
        VLLM.members(asked, [cards(8), cards(8)])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_members_talk_by_the_interface_that_is_set_or_else_by_that_of_their_address(name: str) -> None:
    _, versions, cases = CASES[name]
    request = replace(cases["two workers, the other"], version=versions[-1])
    own = replace(request.members[1], interface="eno7")
    request = replace(request, members=(request.members[0], own))
    launch_member: Any = backend(name).launch_member  # type: ignore[attr-defined]
    for interface, wanted in (("bond0", "bond0"), ("", "eno7")):
        env = launch_member(replace(request, interface=interface)).env
        assert (env["NCCL_SOCKET_IFNAME"], env["GLOO_SOCKET_IFNAME"]) == (f"={wanted}", wanted)


def test_how_full_its_cache_is_comes_from_its_metrics() -> None:
    text = '# HELP x\nvllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\nvllm:num_requests_running 1\n'
    assert VLLM.kv_cache_use(text) == 0.25


@pytest.mark.parametrize(
    ("accelerators", "says"),
    [
        ((), "this is a machine without a GPU; .* --backend-version 0.32.0\\+cpu$"),
        (("rocm",), "this is a machine without an NVIDIA GPU; .* --backend-version 0.32.0\\+rocm700$"),
    ],
)
def test_the_build_for_other_gpus_is_not_installed(accelerators: tuple[str, ...], says: str) -> None:
    there = replace(LINUX, accelerators=accelerators)
    with pytest.raises(Refused, match=says):
        VLLM.artifact("0.32.0", there)
    for version in ("0.32.0+cpu", "0.32.0+rocm700"):
        assert VLLM.artifact(version, there).version == version
    assert VLLM.artifact("0.32.0", replace(LINUX, accelerators=("cuda", *accelerators))).version == "0.32.0"
