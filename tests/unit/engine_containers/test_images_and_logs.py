"""How far a pull is, what a container is shown of a model, and pieces of its log."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import (
    ContainerImage,
    DeviceExposure,
    DeviceRequest,
    LaunchPlan,
    ModelFacts,
    PipxPackage,
    Platform,
    Refused,
    ReleaseBinary,
)
from gpustack.schemas import BackendVersionConfig
from gpustack.worker.contained import contained, image_of
from gpustack.worker.runners.container import described_end
from gpustack.worker.runners.container_log import ContainerLog, parted
from gpustack.worker.runners.engine import Container
from gpustack.worker.runners.images import Progress
from gpustack.worker.runners.reading import reads

LINUX = Platform(system="linux", machine="x86_64")


def facts(path: Path, **fields: object) -> ModelFacts:
    return ModelFacts(format="gguf", path=str(path), weight_bytes=1, **fields)  # type: ignore[arg-type]


class TestProgress:
    def test_it_counts_bytes_and_then_layers(self) -> None:
        progress = Progress("r/x:1")
        assert not progress.text
        progress.take({"status": "Pulling from x", "id": "1"})
        assert not progress.text
        for layer in ("a", "b"):
            progress.take(
                {"status": "Downloading", "id": layer, "progressDetail": {"current": 50, "total": 100}}
            )
        assert progress.text == "pulling the image r/x:1: 100 B of 200 B (50 %)"
        for layer in ("a", "b"):
            progress.take({"status": "Download complete", "id": layer})
        progress.take({"status": "Pull complete", "id": "a"})
        assert progress.text == "pulling the image r/x:1: unpacking (1 of 2 layers)"


class TestWhatIsShown:
    def test_a_file_alone_and_not_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").touch()
        (tmp_path / "private").touch()

        assert reads(facts(tmp_path / "m.gguf")) == {str(tmp_path / "m.gguf"): str(tmp_path / "m.gguf")}

    def test_all_parts_of_one_and_its_companions(self, tmp_path: Path) -> None:
        for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "mmproj.gguf", "other.gguf"):
            (tmp_path / name).touch()

        shown = reads(
            facts(tmp_path / "m-00001-of-00002.gguf", companions=(("mmproj.gguf", 1), ("gone.gguf", 1)))
        )

        assert {Path(each).name for each in shown} == {
            "m-00001-of-00002.gguf",
            "m-00002-of-00002.gguf",
            "mmproj.gguf",
        }

    def test_what_parameters_name(self, tmp_path: Path) -> None:
        model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
        for folder in (model, elsewhere):
            folder.mkdir()
        for file in (model / "m.gguf", model / "draft.gguf", model / "private", elsewhere / "a.safetensors"):
            file.touch()
        (elsewhere / "with space.jinja").touch()
        words = [
            f"--lora-scaled={elsewhere}/a.safetensors:0.5,gone.gguf",
            f"--template={elsewhere}/with space.jinja",
            "--model-draft draft.gguf",
            "--ctx-size=4096",
            "--path=/",
            "private",
        ]

        shown = reads(facts(model / "m.gguf"), words)

        outside = {f"{elsewhere}/a.safetensors", f"{elsewhere}/with space.jinja"}
        assert set(shown) == {str(model / "m.gguf"), str(model / "draft.gguf"), *outside}
        assert set(reads(facts(model), words)) == {str(model), *outside}

    def test_what_a_hubs_links_lead_to(self, tmp_path: Path) -> None:
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "rev"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        (blobs / "abc").write_text("x")
        (snapshot / "m.gguf").symlink_to("../../blobs/abc")

        assert reads(facts(snapshot / "m.gguf")) == {str(snapshot / "m.gguf"): str(blobs / "abc")}
        assert reads(facts(snapshot)) == {str(snapshot): str(snapshot), str(blobs): str(blobs)}


class TestLog:
    def test_nothing_comes_twice(self, tmp_path: Path) -> None:
        paths = tmp_path / "engine.log", tmp_path / "position"
        first = [b"2026-11-27T17:00:00.000000001Z one\n", b"2026-11-27T17:00:00.000000002Z two\n"]
        with ContainerLog(*paths) as log:
            assert "since" not in log.options()
            log.take(first)
        with ContainerLog(*paths) as log:
            assert log.options()["since"] == 1795798800
            log.take([*first, b"2026-11-27T17:00:00.5Z three\n", b"no time\n"])

        assert paths[0].read_text() == "one\ntwo\nthree\nno time\n"

    @given(st.integers(0, 999_999_999), st.sampled_from(["Z", "+00:00"]), st.binary(max_size=50))
    def test_times_are_of_one_length(self, fraction: int, zone: str, text: bytes) -> None:
        digits = f"{fraction:09}".rstrip("0")
        stamp = f"2026-11-27T17:00:00{'.' if digits else ''}{digits}{zone}"

        assert parted(stamp.encode() + b" " + text) == (f"2026-11-27T17:00:00.{fraction:09}Z", text)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"ExitCode": 3}, "exited with status 3 after"),
        ({"ExitCode": 137}, "was killed by signal 9 (SIGKILL) after"),
        ({"ExitCode": 137, "OOMKilled": True}, "it took more memory than its limit of 1.0 GiB"),
        ({"ExitCode": 127, "Error": "no such thing"}, "(no such thing)"),
    ],
)
def test_how_it_ended(state: dict[str, object], says: str) -> None:
    times = {"StartedAt": "2026-11-27T17:00:00.1Z", "FinishedAt": "2026-11-27T17:00:03.2Z"}
    assert says in described_end({"State": {**times, **state}, "HostConfig": {"Memory": 1 << 30}})


class Backend:
    """As much of a backend as is asked here."""

    name = "b"

    def __init__(self, artifact: object) -> None:
        self._artifact = artifact

    def artifact(self, version: str, platform: Platform) -> object:
        if isinstance(self._artifact, Exception):
            raise self._artifact
        return self._artifact


class InImages(Backend):
    def image(self, version: str, platform: Platform) -> ContainerImage:
        kind = "cuda" if "cuda" in platform.accelerators else "cpu"
        return ContainerImage(image=f"acme/{kind}:v{version}", version=version, command="acme")


PIPX = PipxPackage(package="p", version="1", command="serve")


class TestWhichImage:
    def image(self, backend: Backend, platform: Platform = LINUX, **config: object) -> ContainerImage | None:
        given = BackendVersionConfig.model_validate(config)
        return asyncio.run(image_of("p", backend, "1", platform, given))  # type: ignore[arg-type]

    def test_a_package_runs_as_a_process(self) -> None:
        assert self.image(Backend(PIPX)) is None

    def test_an_image_runs_in_a_container(self) -> None:
        own = ContainerImage(image="i", version="1")
        assert self.image(Backend(own)) == own

    def test_one_that_is_named_wins_and_keeps_the_program(self) -> None:
        found = self.image(Backend(PIPX), runner="container", image_name="me/x:{{version}}")
        assert found == ContainerImage(image="me/x:1", version="1", command="serve")
        binary = ReleaseBinary(url="u", version="1", executable="bin/llama-box")
        found = self.image(Backend(binary), runner="container", image_name="x")
        assert found is not None
        assert found.command == "llama-box"
        found = self.image(Backend(Refused("no")), runner="container", image_name="x")
        assert found is not None
        assert not found.command

    def test_the_backends_own_is_by_device(self) -> None:
        gpu = Platform(system="linux", machine="x86_64", accelerators=("cuda",))
        assert self.image(InImages(PIPX)) is None
        for platform, image in ((LINUX, "acme/cpu:v1"), (gpu, "acme/cuda:v1")):
            found = self.image(InImages(PIPX), platform, runner="container")
            assert found is not None
            assert (found.image, found.command) == (image, "acme")

    def test_a_command_of_ones_own_needs_nothing_of_the_plugins(self) -> None:
        nowhere = Backend(Refused("not for this machine"))
        assert self.image(nowhere, run_command="serve --port {{port}}") is None
        for config in ({}, {"run_command": "nice {{command}}"}):
            with pytest.raises(Refused, match="not for this machine"):
                self.image(nowhere, **config)

    def test_none_is_refused(self) -> None:
        with pytest.raises(Refused, match="is to run in a container, and no image is named"):
            self.image(Backend(PIPX), runner="container")


@pytest.mark.parametrize(
    ("configured", "command", "argv", "entrypoint", "arguments"),
    [
        ((), "vllm", ("vllm", "serve"), ("vllm",), ("serve",)),
        ((), "", ("", "--port", "1"), (), ("--port", "1")),
        ((), "", ("serve", "--port", "1"), (), ("serve", "--port", "1")),
        (("tini", "vllm"), "vllm", ("vllm", "serve"), ("tini", "vllm"), ("serve",)),
        (("sh",), "vllm", ("-c", "x"), ("sh",), ("-c", "x")),
    ],
)
def test_what_is_run_in_it(
    configured: tuple[str, ...],
    command: str,
    argv: tuple[str, ...],
    entrypoint: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    request = DeviceRequest(driver="nvidia", ids=("GPU-a",))
    made = contained(
        Container(image="i", entrypoint=configured),
        command,
        LaunchPlan(argv=argv),
        DeviceExposure(requests=(request,), device_files=("/dev/kfd",)),
    )

    assert made is not None
    assert (made.entrypoint, made.arguments) == (entrypoint, arguments)
    assert (made.requests, made.devices) == ((request,), ("/dev/kfd",))
