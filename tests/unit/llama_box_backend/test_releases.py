"""Which archive of llama-box's releases a machine gets."""

from __future__ import annotations

import pytest

from gpustack.plugin import GpuDevice, Platform, Refused
from gpustack_backends.llama_box.releases import release


def machine(system: str, processor: str, kind: str = "", runtime: str = "", chip: str = "GPU") -> Platform:
    device = GpuDevice(
        uuid="1", index=0, vendor="v", name=chip, memory_total=1, type=kind, runtime_version=runtime
    )
    return Platform.of(system, processor, [device] if kind else [])


#: As the releases are named that are known of: version, machine, dynamic, static.
NAMES = [
    ("v0.0.171", machine("linux", "x86_64"), "linux-amd64-cpu", "linux-amd64-avx2"),
    ("v0.0.171", machine("linux", "aarch64"), "linux-arm64-cpu", "linux-arm64-neon"),
    ("v0.0.171", machine("linux", "x86_64", "cuda", "12.4"), "linux-amd64-cuda-12.4", None),
    ("v0.0.171", machine("linux", "x86_64", "cuda", "12.8"), "linux-amd64-cuda-12.8", None),
    ("v0.0.171", machine("linux", "x86_64", "cuda", "13.0"), "linux-amd64-cuda-12.8", None),
    ("v0.0.171", machine("linux", "x86_64", "cuda", "12.1"), "linux-amd64-cuda-12.4", None),
    ("v0.0.171", machine("linux", "aarch64", "cuda"), "linux-arm64-cuda-12.4", None),
    ("v0.0.144", machine("linux", "x86_64", "cuda", "11.8"), "linux-amd64-cuda-11.8", None),
    ("v0.0.171", machine("linux", "x86_64", "rocm", "6.4"), "linux-amd64-hip-6.2", None),
    ("v0.0.171", machine("linux", "aarch64", "npu", "8.0.0", "Ascend 910B3"), "linux-arm64-cann-8.0", None),
    (
        "v0.0.171",
        machine("linux", "aarch64", "npu", "8.1.RC1", "Ascend 310P3"),
        "linux-arm64-cann-8.1.rc1-310p",
        None,
    ),
    ("v0.0.144", machine("linux", "x86_64", "npu", "8.1.rc1"), "linux-amd64-cann-8.0", None),
    ("v0.0.171", machine("linux", "x86_64", "musa"), "linux-amd64-musa-rc4.0", None),
    ("v0.0.149", machine("linux", "x86_64", "musa"), "linux-amd64-musa-rc3.1", None),
    ("v0.0.171", machine("linux", "x86_64", "dcu"), "linux-amd64-dtk-25.04", None),
    ("v0.0.154", machine("linux", "x86_64", "dcu"), "linux-amd64-dtk-24.04", None),
    ("v0.0.147", machine("windows", "amd64", "vulkan"), "windows-amd64-vulkan-1.4", None),
    ("v0.0.171", machine("windows", "AMD64"), "windows-amd64-cpu", "windows-amd64-avx2"),
    ("v0.0.171", machine("darwin", "arm64", "mps"), "darwin-arm64-metal", None),
    ("v0.0.171", machine("darwin", "arm64"), "darwin-arm64-metal", None),
    ("v0.0.171", machine("darwin", "x86_64"), "darwin-amd64-cpu", "darwin-amd64-avx2"),
]


@pytest.mark.parametrize(("version", "platform", "dynamic", "static"), NAMES)
def test_the_archive_is_called_as_in_the_releases(version, platform, dynamic, static) -> None:
    base = f"https://github.com/gpustack/llama-box/releases/download/{version}"

    one, other = (release(version, platform, static=each) for each in (False, True))

    assert one.url == f"{base}/dl-llama-box-{dynamic}.zip"
    assert other.url == f"{base}/llama-box-{static or dynamic}.zip"
    assert one.checksums == f"{base}/sha256sum.txt"
    assert one.executable == ("llama-box.exe" if platform.system == "windows" else "llama-box")
    assert (one.version, other.version) == (version, version)


@pytest.mark.parametrize(
    ("platform", "said"),
    [
        (machine("linux", "s390x"), "does not come for cpu on linux with s390x"),
        (machine("", ""), "does not come for cpu on  with this processor"),
        (machine("linux", "aarch64", "rocm"), "does not come for hip on linux with aarch64"),
        (machine("windows", "arm64", "cuda"), "does not come for cuda on windows with arm64"),
        (
            machine("linux", "x86_64", "tpu"),
            "knows no accelerators of kind tpu; it comes for cuda, hip, cann",
        ),
        (
            machine("linux", "x86_64", "cuda", "11.8"),
            "needs a driver for CUDA 12 or newer, and there is one for 11.8",
        ),
    ],
)
def test_it_says_where_it_does_not_come_for(platform, said) -> None:
    with pytest.raises(Refused) as caught:
        release("v0.0.171", platform, static=False)

    assert said in str(caught.value)


@pytest.mark.parametrize("version", ["0.0.171", "v0.0", "v0.0.171-rc1", "v0.0.01", "latest", "v0.0.171\n"])
def test_versions_are_those_of_its_releases(version) -> None:
    with pytest.raises(Refused, match=r"is no version of llama-box; they look like v0\.0\.171"):
        release(version, machine("linux", "x86_64"), static=False)
