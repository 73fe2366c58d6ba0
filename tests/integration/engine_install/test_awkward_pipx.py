"""A pipx that is missing, lies, hangs, or is ended; and engines that are installed but do not work.

The pipx here is a script of ours, named by ``--pipx-path``; everything around it is real.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gpustack.plugin import ContainerImage, PipxPackage, Refused
from gpustack.worker.artifacts import ArtifactInstaller, InstallError
from gpustack.worker.artifacts.pins import Pins

ACME = PipxPackage(
    package="acme-engine", version="1.2", command="acme", wheel=b"as it were", wheel_name="acme-1.2.whl"
)
WORKS = "#!/bin/sh\necho acme 1.2\n"

#: Does what pipx does: makes an environment with the command in it, and a link to that.
PIPX = """\
import json, os, pathlib, sys, time
home, bin_dir = pathlib.Path(os.environ["PIPX_HOME"]), pathlib.Path(os.environ["PIPX_BIN_DIR"])
with open(home / "calls", "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
def install(script, name="acme_1.2"):
    place = home / "venvs" / "acme-1-2" / "acme"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(script)
    place.chmod(0o755)
    (bin_dir / name).unlink(missing_ok=True)
    (bin_dir / name).symlink_to(place)
"""


@pytest.fixture
def pipx(tmp_path: Path):
    """Return what makes an installer whose pipx behaves as told."""

    def installer(behaviour: str, **options) -> ArtifactInstaller:
        script = tmp_path / "pipx"
        script.write_text(f"#!{sys.executable}\n{PIPX}\nWORKS = {WORKS!r}\n{behaviour}\n")
        script.chmod(0o755)
        folders = {name: tmp_path / name for name in ("bin_dir", "data_dir", "log_dir")}
        return ArtifactInstaller(**folders, pipx_path=str(script), **options)

    return installer


def calls(tmp_path: Path) -> list[tuple[list[str], dict[str, str]]]:
    return [json.loads(line) for line in (tmp_path / "data_dir" / "pipx" / "calls").read_text().splitlines()]


async def fails(installer: ArtifactInstaller, artifact: PipxPackage = ACME) -> InstallError:
    with pytest.raises(InstallError) as caught:
        await installer.ensure("acme", artifact)
    assert "\n" not in str(caught.value)
    assert installer.installed() == {}
    return caught.value


async def test_pipx_is_called_once_with_what_it_needs(pipx, tmp_path) -> None:
    environ = {
        **os.environ,
        "PIP_INDEX_URL": "http://index.test",
        "https_proxy": "p",
        "GPUSTACK_TOKEN": "secret",
    }
    installer = pipx("install(WORKS)", environ={**environ, "PYTHONPATH": "/x", "VIRTUAL_ENV": "/y"})

    for _ in range(3):
        command = await installer.ensure("acme", ACME)

    assert command == tmp_path / "bin_dir" / "acme_1.2"
    assert installer.installed() == {"acme": ["1.2"]}
    ((argv, env),) = calls(tmp_path)
    wheel = tmp_path / "data_dir" / "pipx" / "wheels" / "acme-1.2.whl"
    assert argv == ["install", "--verbose", "--force", "--suffix", "_1.2", str(wheel)]
    assert wheel.read_bytes() == ACME.wheel
    assert (env["PIPX_HOME"], env["PIPX_BIN_DIR"]) == (
        str(tmp_path / "data_dir" / "pipx"),
        str(tmp_path / "bin_dir"),
    )
    assert (env["PIP_INDEX_URL"], env["https_proxy"], env["HOME"]) == (
        "http://index.test",
        "p",
        os.environ["HOME"],
    )
    assert not {"GPUSTACK_TOKEN", "PYTHONPATH", "VIRTUAL_ENV"} & set(env)
    assert env["PIPX_DEFAULT_BACKEND"] == "pip", "there is no uv"


async def test_uv_is_taken_where_it_is_and_gets_what_is_set_for_pip(pipx, tmp_path) -> None:
    uv = tmp_path / "with uv" / "uv"
    uv.parent.mkdir()
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    environ = {
        "PATH": f"{uv.parent}:/bin",
        "PIP_INDEX_URL": "http://index.test",
        "PIP_CONFIG_FILE": os.devnull,
    }

    await pipx("install(WORKS)", environ=environ).ensure("a", ACME)

    env = calls(tmp_path)[0][1]
    assert (env["PIPX_DEFAULT_BACKEND"], env["UV_DEFAULT_INDEX"]) == ("uv", "http://index.test")


async def test_a_package_of_the_index_is_named_with_its_version(pipx, tmp_path) -> None:
    await pipx("install(WORKS)").ensure("acme", replace(ACME, wheel=None, wheel_name=""))

    assert calls(tmp_path)[0][0][-1] == "acme-engine==1.2"


async def test_many_callers_wait_for_one_installation(pipx, tmp_path) -> None:
    first, second = (pipx("time.sleep(0.3); install(WORKS)") for _ in range(2))

    await asyncio.gather(*(each.ensure("acme", ACME) for each in (first, first, second, second)))

    assert len(calls(tmp_path)) == 1


async def test_the_last_caller_alone_ends_an_installation(pipx, tmp_path) -> None:
    installer = pipx("time.sleep(1); install(WORKS)")
    said: list[str] = []
    first = asyncio.create_task(installer.ensure("acme", ACME))
    await asyncio.sleep(0.4)
    second = asyncio.create_task(installer.ensure("acme", ACME, said.append))
    await asyncio.sleep(0.1)

    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    assert (await second).exists()
    assert len(calls(tmp_path)) == 1
    assert said == ["installing acme-engine 1.2 with pipx", "checking acme_1.2"]


async def test_another_wheel_of_the_same_version_is_installed_anew(pipx, tmp_path) -> None:
    installer = pipx("install(WORKS)")
    await installer.ensure("acme", ACME)

    await installer.ensure("acme", replace(ACME, wheel=b"mended"))

    assert len(calls(tmp_path)) == 2


async def test_an_engine_put_there_by_hand_is_taken(pipx, tmp_path) -> None:
    by_hand = tmp_path / "bin_dir" / "acme_1.2"
    by_hand.parent.mkdir()
    by_hand.write_text(WORKS)
    by_hand.chmod(0o755)

    assert await pipx("sys.exit(1)").ensure("acme", ACME) == by_hand
    assert not (tmp_path / "data_dir" / "pipx" / "calls").exists()


@pytest.mark.parametrize("linked", [False, True])
async def test_what_somebody_put_there_is_not_overwritten(pipx, tmp_path, linked) -> None:
    (tmp_path / "bin_dir").mkdir()
    foreign = tmp_path / ("theirs" if linked else "bin_dir/acme_1.2")
    foreign.write_text("#!/bin/sh\necho mine\n")
    foreign.chmod(0o755)
    if linked:
        (tmp_path / "bin_dir" / "acme_1.2").symlink_to(foreign)

    error = await fails(pipx("install(WORKS)"))

    assert (
        "bin_dir/acme_1.2 was not put there by GPUStack, and is not acme-engine 1.2: --version does"
        in str(error)
    )
    assert not error.again
    assert (tmp_path / "bin_dir" / "acme_1.2").read_text() == "#!/bin/sh\necho mine\n"


async def test_another_bin_dir_leads_to_the_same_environment(pipx, tmp_path) -> None:
    installer = pipx("install(WORKS); os.rename(home / 'venvs/acme-1-2', home / 'venvs/acme-engine-1-2'); "
                     "os.unlink(bin_dir / 'acme_1.2'); (bin_dir / 'acme_1.2').symlink_to("
                     "home / 'venvs/acme-engine-1-2/acme')")  # fmt: skip
    there = await installer.ensure("acme", ACME)
    other = ArtifactInstaller(
        bin_dir=tmp_path / "other", data_dir=tmp_path / "data_dir", pipx_path="/bin/false"
    )

    command = await other.ensure("acme", ACME)

    assert command.parent == tmp_path / "other"
    assert command.resolve() == there.resolve()
    assert len(calls(tmp_path)) == 1
    assert installer.installed() == other.installed() == {"acme": ["1.2"]}

    # A launcher of another GPUStack has to be installed anew, but not under what runs.
    (program := command.resolve().with_name("sleep")).symlink_to("/bin/sleep")
    command.unlink()
    with subprocess.Popen([program, "60"]) as process:
        with pytest.raises(InstallError, match=f"process {process.pid} runs from its environment"):
            await other.ensure("acme", replace(ACME, wheel=b"newer"))
        process.kill()
    assert installer.installed() == {"acme": ["1.2"]}


async def test_what_succeeded_before_is_no_reason(pipx, tmp_path) -> None:
    package = replace(ACME, constraints="dep==1")
    installer = pipx("sys.exit(1)")

    async def downloads(self, recipe, run):
        await run(["/bin/echo", "Successfully downloaded dep"], "fetching")
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pins, "arguments", downloads)
        assert "pipx exited with status 1 and said nothing; check --pipx-path" in str(
            await fails(installer, package)
        )


@pytest.mark.parametrize(
    ("mode", "owner", "who"),
    [(0o777, 0, "every user"), (0o700, 1234, "its owner, user 1234,"), (0o755, 0, ""), (0o1777, 0, "")],
)
async def test_who_else_may_exchange_engines_is_said(pipx, tmp_path, mode, owner, who) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give folders away")
    (tmp_path / "bin_dir").mkdir()
    (tmp_path / "bin_dir").chmod(mode)
    os.chown(tmp_path / "bin_dir", owner, owner)
    said: list[str] = []

    await pipx("install(WORKS)").ensure("acme", ACME, said.append)

    assert [line for line in said if f"bin_dir: {who} can exchange the engines in it" in line] == (
        [f"--bin-dir {tmp_path / 'bin_dir'}: {who} can exchange the engines in it"] if who else []
    )
    assert any("can exchange" in line for line in said) == bool(who)


async def test_a_dangling_link_is_replaced(pipx, tmp_path) -> None:
    (tmp_path / "bin_dir").mkdir()
    (tmp_path / "bin_dir" / "acme_1.2").symlink_to(tmp_path / "gone")

    command = await pipx("install(WORKS)").ensure("acme", ACME)

    assert command.resolve().name == "acme"


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("", "acme_1.2 cannot be installed: pipx made no "),
        ("print('ERROR: the moon is full'); sys.exit(1)", "cannot be installed: the moon is full; see "),
        ("print('OSError: [Errno 28] No space left on device'); sys.exit(1)", "the disk is full"),
        (
            "os.kill(os.getpid(), 9)",
            "cannot be installed: pipx was killed by SIGKILL and said nothing; check --pipx-path",
        ),
        (
            "install('#!/bin/sh\\necho cannot load; exit 3\\n')",
            "--version ended with status 3: cannot load; see ",
        ),
        ("install('#!/bin/sh\\necho acme 7\\n')", "--version does not name version 1.2"),
        ("install('#!/nonexistent/python\\n')", "it cannot be started: No such file or directory"),
    ],
)
async def test_status_0_alone_proves_nothing(pipx, behaviour, said) -> None:
    assert said in str(await fails(pipx(behaviour)))


async def test_an_engine_is_tried_without_the_way_into_the_index(pipx, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:s3cret@index.test")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    script = f"#!/bin/sh\\nenv > {tmp_path}/seen; echo acme 1.2\\n"
    await pipx(f"install('{script}')").ensure("acme", ACME)

    seen = (tmp_path / "seen").read_text()
    assert "s3cret" not in seen
    assert "CUDA_VISIBLE_DEVICES=3" in seen
    assert f"GPUSTACK_INSTALLS={tmp_path}/data_dir" in seen, "who comes after a crash finds it"


async def test_an_engine_that_hangs_is_ended(pipx) -> None:
    error = await fails(pipx("install('#!/bin/sh\\nsleep 60\\n')", verify_timeout=1))

    assert "did not answer --version within 1 s" in str(error)


async def test_a_pipx_that_hangs_is_ended(pipx) -> None:
    error = await fails(pipx("time.sleep(60)", timeout=1))

    assert "pipx was not done after 1 s" in str(error)


@pytest.mark.parametrize("pipx_path", ["/nonexistent/pipx", "no-such-pipx", "/etc/passwd"])
async def test_a_wrong_pipx_path_is_named(tmp_path, pipx_path) -> None:
    error = await fails(
        ArtifactInstaller(bin_dir=tmp_path / "b", data_dir=tmp_path / "d", pipx_path=pipx_path)
    )

    assert f"--pipx-path: {pipx_path} is not an executable file" in str(error)


async def test_no_pipx_anywhere_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    installer = ArtifactInstaller(
        bin_dir=tmp_path / "b", data_dir=tmp_path / "d", environ={"PATH": str(tmp_path)}
    )

    assert "install pipx or name it with --pipx-path" in str(await fails(installer))


def survivors(word: str) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if word in line and process.pid != os.getpid() and "pytest" not in line:
            found.append(line)
    return found


async def test_cancelling_ends_pipx_and_its_children(pipx, tmp_path) -> None:
    mark = f"sleeper-{tmp_path.name}-{os.getpid()}"
    child = f"import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}]).wait()"
    task = asyncio.create_task(pipx(child).ensure("acme", ACME))
    deadline = time.monotonic() + 10
    while not survivors(mark) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert survivors(mark)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not survivors(mark)
    # Nothing stays locked.
    assert await pipx("install(WORKS)").ensure("acme", ACME)


async def test_a_bin_dir_that_is_a_file_is_named(pipx, tmp_path) -> None:
    (tmp_path / "bin_dir").write_text("")

    with pytest.raises(Exception, match=r"--bin-dir .*bin_dir is a file, not a directory"):
        await pipx("").ensure("acme", ACME)


@pytest.mark.parametrize(
    "artifact",
    [ContainerImage(image="acme", version="1")],
)
async def test_other_kinds_of_artifact_are_refused(tmp_path, artifact) -> None:
    with pytest.raises(Refused, match="backend acme comes as an image, which is pulled when a model starts"):
        await ArtifactInstaller(bin_dir=tmp_path, data_dir=tmp_path).ensure("acme", artifact)
