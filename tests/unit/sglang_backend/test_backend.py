"""What SGLang is asked for, what it takes, and what is refused with which words."""

from __future__ import annotations

import io
import runpy
import zipfile
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import EstimateRequest, GpuDevice, PipxPackage, Platform, Refused
from support.engine_lines import EIGHT, SEVENTY, SGLANG_CASES, VECTORS, backend, cards

SGLANG = backend("sglang")
GIB = 1 << 30
LINUX = Platform(system="linux", machine="x86_64", accelerators=("cuda",))


def question(
    model: Any, devices: tuple[GpuDevice, ...], *parameters: str, version: str = "0.5.23"
) -> EstimateRequest:
    return EstimateRequest(model=model, version=version, parameters=parameters, devices=devices)


def value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


@given(st.integers(16, 200), st.integers(1, 8), st.sampled_from([EIGHT, SEVENTY, VECTORS]))
def test_what_is_launched_stays_within_the_claim_even_where_no_more_is_free(
    gib: int, gpus: int, model: Any
) -> None:
    for way in SGLANG.ways(question(model, cards(gpus, gib))):
        if (each := way.vram // way.gpus) > gib * GIB:
            continue
        request = replace(
            SGLANG_CASES["one GPU"], model=model, version="0.5.23", devices=cards(way.gpus, gib), claim=way
        )
        argv = SGLANG.launch(request).argv
        static = float(value(argv, "--mem-fraction-static"))
        assert 0 < static < 1
        # Weights and cache of that part of what is free, and the rest beside it.
        assert static * each <= each
        assert int(value(argv, "--max-total-tokens")) >= 2048


def test_a_second_level_of_the_cache_is_claimed_in_ram() -> None:
    plain = SGLANG.estimate(question(EIGHT, cards(2)))
    sized = SGLANG.estimate(question(EIGHT, cards(2), "--enable-hierarchical-cache", "--hicache-size=10"))
    ratio = SGLANG.estimate(question(EIGHT, cards(2), "--enable-hierarchical-cache"))
    assert sized.ram - plain.ram == 2 * 10 * 10**9
    assert ratio.ram > plain.ram


def test_attention_by_data_shares_the_gpus_of_the_group() -> None:
    parameters = ("--tp=4", "--dp=4", "--enable-dp-attention")
    assert SGLANG.estimate(question(SEVENTY, cards(4), *parameters)).gpus == 4
    assert SGLANG.estimate(question(EIGHT, cards(8), "--tp=2", "--dp=4")).gpus == 8


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (("--tp=3",), "cannot be dealt out evenly"),
        (("--tp=16",), "take 16 GPUs, and there are 8"),
        (("--hicache-size=8",), "does nothing without --enable-hierarchical-cache"),
        (("--context-length=16k",), "needs a whole number, not '16k'"),
        (("--dist-init-addr=1.2.3.4:5",), "how its processes find each other"),
        (("--model /x",), "the model's files"),
    ],
)
def test_what_can_never_work_is_refused(parameters: tuple[str, ...], says: str) -> None:
    with pytest.raises(Refused, match=says):
        SGLANG.estimate(question(EIGHT, cards(8), *parameters))


def test_flags_of_later_versions_are_refused_with_the_version() -> None:
    with pytest.raises(Refused, match=r"--attn-dp-size needs SGLang 0\.5\.22 or newer, and this is 0\.5\.9"):
        SGLANG.estimate(question(SEVENTY, cards(4), "--attn-dp-size=2", version="0.5.9"))


def test_a_model_that_needs_a_newer_version_says_which() -> None:
    new = replace(EIGHT, architecture="gemma4")
    with pytest.raises(Refused, match=r"gemma4 need SGLang 0\.5\.11 or newer, and this is 0\.5\.9"):
        SGLANG.estimate(question(new, cards(1), version="0.5.9"))
    assert SGLANG.estimate(question(new, cards(1)))


def test_versions_with_a_command_are_installed_as_they_are() -> None:
    artifact = SGLANG.artifact("0.5.23", LINUX)
    assert isinstance(artifact, PipxPackage)
    assert (artifact.package, artifact.command, artifact.wheel) == ("sglang", "sglang", None)
    assert artifact.verify == ("version",)


def test_versions_without_one_get_a_package_around_them(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    artifact = SGLANG.artifact("0.4.10.post2", LINUX)
    assert isinstance(artifact, PipxPackage)
    assert artifact.wheel is not None
    assert artifact == SGLANG.artifact("0.4.10.post2", LINUX)
    with zipfile.ZipFile(io.BytesIO(artifact.wheel)) as wheel:
        wheel.extractall(tmp_path)
    info = tmp_path / "gpustack_sglang-0.4.10.post2.dist-info"
    assert "Requires-Dist: sglang[all]==0.4.10.post2" in (info / "METADATA").read_text()
    # Its command is the module, with the same arguments.
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["gpustack-sglang", "--port", "1"])
    runpy.run_path(str(tmp_path / "gpustack_sglang.py"))["main"]()
    assert capsys.readouterr().out == "__main__ ['--port', '1']\n"


def test_machines_without_gpus_are_refused() -> None:
    assert not SGLANG.accepts(EIGHT, ()).ok
    with pytest.raises(Refused, match="not for machines without a GPU"):
        SGLANG.artifact("0.5.23", Platform(system="linux", machine="x86_64"))


def test_old_cards_are_refused_with_what_they_have() -> None:
    old = tuple(replace(each, compute_capability="7.5", name="T4") for each in cards(1))
    assert SGLANG.accepts(EIGHT, old).reason == "SGLang needs compute capability 8.0 or newer; T4 has 7.5"


def test_members_take_the_same_and_together_what_one_takes() -> None:
    claims = SGLANG.members(question(SEVENTY, ()), [cards(8), cards(8)])  # type: ignore[attr-defined]
    assert claims[0] == claims[1]
    whole = SGLANG.estimate(question(SEVENTY, cards(16), "--tp=8", "--pp=2"))
    assert sum(each.vram for each in claims) == whole.vram


def test_an_address_of_six_is_written_in_brackets() -> None:
    request = replace(SGLANG_CASES["two workers, the other"], version="0.5.23")
    leader = replace(request.members[0], host="fd00::1")
    argv = SGLANG.launch_member(replace(request, members=(leader, request.members[1]))).argv  # type: ignore[attr-defined]
    assert value(argv, "--dist-init-addr") == "[fd00::1]:41000"
